//! Why an operation on a pool failed.

use std::fmt;

use corebay_core::{disk::DiskError, units::BlockSize};

/// Why an operation on a pool or a volume was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// No superblock of a pool was found.
    NotAPool,
    /// The pool's format is newer than this program.
    NewerFormat(u32),
    /// The disk is not what the pool was made on.
    WrongDisk(String),
    /// The disk's blocks have another size than those that the pool was made on.
    OtherBlocks {
        /// Theirs.
        now: BlockSize,
        /// The pool's.
        then: BlockSize,
    },
    /// The pool's journal lies in the mirrored zone of the array that it was made on, and is not there.
    NoZone(&'static str),
    /// The metadata contradict themselves, in both copies.
    Corrupt(String),
    /// The disk failed.
    Disk(DiskError),
    /// The pool stopped changing after its disk failed; what is mapped can still be read.
    Failed,
    /// Not enough space is left.
    NoSpace,
    /// The disk is too small for a pool.
    TooSmall,
    /// Another machine has the pool, or had it and has not released it.
    Foreign(String),
    /// An export that no host could use, or one that is too large.
    BadExport,
    /// Nothing has this name or number.
    NotFound,
    /// Something else has this name.
    Exists,
    /// A name that is empty or too long.
    BadName,
    /// A size of zero, or beyond what a volume may have.
    BadSize,
    /// The volume is open.
    Busy,
    /// A stream that is the difference to the snapshot was not received to its end.
    BaseOfStream,
    /// Blocks in use would be cut off.
    InUse,
    /// That cannot be done to a snapshot, or only to one.
    WrongKind,
    /// A table is full.
    TooMany,
    /// Its maps are more than may be in memory while it is open.
    TooLarge,
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPool => write!(f, "there is no pool on the disk"),
            Self::NewerFormat(version) => {
                write!(f, "the pool has format {version}, newer than this program")
            }
            Self::WrongDisk(why) => write!(f, "the disk does not suit the pool: {why}"),
            Self::OtherBlocks { now, then } => write!(
                f,
                "the disk does not suit the pool: its blocks have {now} bytes, not {then}"
            ),
            Self::NoZone(why) => write!(
                f,
                "the pool's journal is in the mirrored zone of the array that it was made on, and {why}"
            ),
            Self::Corrupt(what) => write!(f, "the pool's metadata are damaged: {what}"),
            Self::Disk(error) => write!(f, "the pool's disk: {error}"),
            Self::Failed => write!(f, "the pool stopped after its disk failed"),
            Self::NoSpace => write!(f, "not enough space is left in the pool"),
            Self::TooSmall => write!(f, "the disk is too small for a pool"),
            Self::Foreign(owner) => write!(
                f,
                "the pool is {owner}'s, which has not released it and may be using it"
            ),
            Self::BadExport => write!(f, "the export names no subsystem or is too large"),
            Self::NotFound => write!(f, "there is no such volume"),
            Self::Exists => write!(f, "the name is taken"),
            Self::BadName => write!(f, "a name has 1 to 255 bytes"),
            Self::BadSize => write!(f, "the size is zero or too large"),
            Self::Busy => write!(f, "the volume is in use"),
            Self::BaseOfStream => write!(
                f,
                "a volume is receiving the difference to this snapshot: end that, or abort it, first"
            ),
            Self::InUse => write!(f, "blocks in use would be cut off"),
            Self::WrongKind => write!(f, "that cannot be done to this kind of volume"),
            Self::TooMany => write!(f, "there are too many of them"),
            Self::TooLarge => write!(
                f,
                "the pool's maps do not fit into memory beside what is served of it: check it while nobody \
                 has it open (`corebay pool check --offline`)"
            ),
        }
    }
}

impl std::error::Error for PoolError {}

impl From<DiskError> for PoolError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<PoolError> for DiskError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Disk(error) => error,
            PoolError::NoSpace => Self::NoSpace,
            PoolError::Failed => Self::WriteFault,
            PoolError::Corrupt(_) => Self::UnrecoveredRead,
            _ => Self::Internal(0),
        }
    }
}
