//! Encoders against golden cases, published vocabularies and files that are wrong.

mod autoencoders;
mod files;
mod published;
mod text;
mod tokenizers;
mod wrong;
