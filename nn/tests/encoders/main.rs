//! Encoders against golden cases, published vocabularies and files that are wrong.

mod autoencoders;
mod files;
mod published;
mod single_files;
mod text;
mod tokenizers;
mod vision;
mod wrong;
