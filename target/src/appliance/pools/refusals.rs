//! Owns the words in which pools refuse what is ordered.

use corebay_conf::Size;
use corebay_core::disk::DiskError;
use corebay_lvol::{
    error::PoolError,
    format::page::{Kind, VolumeRecord},
};

use super::{describe::STOPPED, home::OpenPool};
use crate::appliance::control::RpcError;

/// The one place where a pool's error becomes an answer.
pub fn refusal(error: PoolError) -> RpcError {
    let message = error.to_string();
    match error {
        PoolError::Failed => RpcError::refused(format!("{message}: {STOPPED}")),
        PoolError::NoSpace => RpcError::full(message),
        PoolError::NotFound => RpcError::missing(message),
        PoolError::Exists => RpcError::conflict(message),
        PoolError::BadName | PoolError::BadSize | PoolError::WrongKind => RpcError::params(message),
        _ => RpcError::refused(message),
    }
}

/// The same, with what is left of the pool where that is not enough, and what was wanted where that is known.
pub fn refusal_in(pool: &OpenPool, wanted: Option<u64>, error: PoolError) -> RpcError {
    let is_full = matches!(
        error,
        PoolError::NoSpace | PoolError::Disk(DiskError::NoSpace)
    );
    if !is_full {
        return refusal(error);
    }
    let status = pool.pool.status();
    let wanted = wanted.map_or_else(String::new, |bytes| {
        format!("{} are wanted, ", Size::from_bytes(bytes))
    });
    RpcError::full(format!(
        "not enough space is left in the pool \"{}\": {wanted}{} of its {} may still be taken, {} are reserved \
         for thick volumes",
        pool.pool.name(),
        Size::from_bytes(status.available_bytes),
        Size::from_bytes(status.total_bytes),
        Size::from_bytes(status.reserved_bytes)
    ))
}

/// What is there is something else.
pub fn already(pool: &OpenPool, record: &VolumeRecord) -> RpcError {
    let size = Size::from_bytes(pool.info.block_size.bytes_of(record.blocks));
    let kind = match (record.kind, record.thick) {
        (Kind::Snapshot, _) => "a snapshot",
        (_, true) => "a thick volume",
        (_, false) => "a thin volume",
    };
    RpcError::conflict(format!(
        "\"{}\" is there already: {kind} of {size}",
        record.name
    ))
}
