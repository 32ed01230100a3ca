//! Owns the raw host: it sets up associations as hosts do ([`handshake`]), and loads a connection
//! with capsules that were put together beforehand ([`driver`]), so that little of what is measured
//! is its own.

pub mod driver;
pub mod handshake;
