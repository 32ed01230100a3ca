//! Owns which of the kernels a processor can run.

use std::{fmt, sync::OnceLock};

/// A kind of kernel, from the slowest on. Each makes the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// No instructions that not every processor has.
    Portable,
    /// Products by shuffles of nibbles, 32 bytes at a time.
    Avx2,
    /// Products by shuffles of nibbles, 64 bytes at a time.
    Avx512,
    /// Products by affine transformations, 32 bytes at a time.
    Avx2Gfni,
    /// Products by affine transformations, 64 bytes at a time.
    Avx512Gfni,
}

impl Level {
    /// All levels, also those that this processor lacks.
    pub const ALL: [Self; 5] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx512,
        Self::Avx2Gfni,
        Self::Avx512Gfni,
    ];

    /// Whether this processor has what the level needs.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2");
        let gfni = is_x86_feature_detected!("gfni");
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2,
            Self::Avx512 => avx512,
            Self::Avx2Gfni => avx2 && gfni,
            Self::Avx512Gfni => avx512 && gfni,
        }
    }

    /// Whether this processor has what the level needs.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// All levels that this processor has.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| level.is_available())
    }

    /// The fastest level that this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().unwrap_or(Self::Portable))
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx2Gfni => "avx2+gfni",
            Self::Avx512Gfni => "avx512+gfni",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_available_and_nothing_available_is_better() {
        let best = Level::best();
        assert!(best.is_available());
        assert!(Level::available().all(|level| level <= best));
        assert!(Level::Portable.is_available());
    }
}
