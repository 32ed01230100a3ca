//! New types for what must not be mixed: block addresses, block sizes, cores, points in time.

use std::{fmt, time::Duration};

/// A logical block address: counts blocks of the disk it belongs to, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(pub u64);

impl Lba {
    /// The address `blocks` further on; saturates, so that a range check after it still refuses.
    #[must_use]
    pub fn plus(self, blocks: u64) -> Self {
        Self(self.0.saturating_add(blocks))
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The size of a logical block. Only the two sizes that hosts format with exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockSize {
    /// 512 bytes (LBADS 9).
    B512,
    /// 4096 bytes (LBADS 12).
    B4096,
}

impl BlockSize {
    /// The size for a count of bytes, if it is one of the two.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }

    /// Bytes in one block.
    #[must_use]
    pub const fn bytes(self) -> usize {
        1 << self.shift()
    }

    /// log2 of the bytes in one block (the specification's LBADS).
    #[must_use]
    pub const fn shift(self) -> u32 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// The bytes that `blocks` blocks take.
    #[must_use]
    pub const fn bytes_of(self, blocks: u64) -> u64 {
        blocks << self.shift()
    }

    /// The whole blocks that fit into `bytes`.
    #[must_use]
    pub const fn blocks_in(self, bytes: u64) -> u64 {
        bytes >> self.shift()
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

/// The index of a reactor within the process: 0 for the first configured core, and so on. Not the
/// machine's CPU number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub usize);

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "core {}", self.0)
    }
}

/// A point in monotonic time: nanoseconds since the environment's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// Further away than any deadline.
    pub const FAR: Self = Self(u64::MAX);

    /// The point `after` later; saturates at [`Time::FAR`].
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        let nanos = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// The time from `earlier` to this point, zero if it lies in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
