//! What hosts may read and write of a volume in a second, as the pool keeps it.

/// The bytes that limits take.
pub const LIMITS_BYTES: usize = 64;

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rate {
    /// So many a second; 0 is no limit.
    pub per_second: u64,
    /// So many at once after a pause that was long enough.
    pub burst: u64,
}

/// The limits of a volume; by default there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    /// Read commands.
    pub read_operations: Rate,
    /// Bytes that are read.
    pub read_bytes: Rate,
    /// Commands that change something.
    pub write_operations: Rate,
    /// Bytes that are written.
    pub write_bytes: Rate,
}

impl Limits {
    /// The bytes they are kept in: of each limit the rate (8) and the burst (8).
    #[must_use]
    pub fn encode(&self) -> [u8; LIMITS_BYTES] {
        let rates = [
            self.read_operations,
            self.read_bytes,
            self.write_operations,
            self.write_bytes,
        ];
        let mut bytes = [0; LIMITS_BYTES];
        let numbers = rates.iter().flat_map(|rate| [rate.per_second, rate.burst]);
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The limits that are kept so.
    #[must_use]
    pub fn parse(bytes: &[u8; LIMITS_BYTES]) -> Self {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
            u64::from_le_bytes(number)
        };
        let rate = |at: usize| Rate {
            per_second: number(2 * at),
            burst: number(2 * at + 1),
        };
        Self {
            read_operations: rate(0),
            read_bytes: rate(1),
            write_operations: rate(2),
            write_bytes: rate(3),
        }
    }
}
