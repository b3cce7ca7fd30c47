//! How an adapter moves.
