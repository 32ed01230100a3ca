//! Owns how a disk that is one of several kinds passes each operation on to the one that it is.

/// Makes an enum whose variants each hold a disk (or what dereferences to one) a
/// [`Disk`](crate::disk::Disk) itself, without a box: one match an operation.
///
/// ```
/// use corebay_core::disk::{null::NullDisk, ram::RamDisk};
///
/// enum Either {
///     Ram(RamDisk),
///     Null(NullDisk),
/// }
/// corebay_core::disk_of_kinds!(Either { Ram, Null });
/// ```
#[macro_export]
macro_rules! disk_of_kinds {
    ($any:ty { $($kind:ident),+ }) => {
        impl $crate::disk::Disk for $any {
            fn info(&self) -> $crate::disk::DiskInfo {
                match self {
                    $(Self::$kind(disk) => disk.info(),)+
                }
            }

            fn is_limited(&self) -> bool {
                match self {
                    $(Self::$kind(disk) => disk.is_limited(),)+
                }
            }

            fn admit(
                &self,
                cost: $crate::disk::Cost,
                at: $crate::units::Time,
            ) -> $crate::disk::Admission {
                match self {
                    $(Self::$kind(disk) => disk.admit(cost, at),)+
                }
            }

            fn limits_generation(&self) -> u64 {
                match self {
                    $(Self::$kind(disk) => disk.limits_generation(),)+
                }
            }

            async fn read(
                &self,
                at: $crate::units::Lba,
                into: &[$crate::buffer::Buffer],
            ) -> Result<(), $crate::disk::DiskError> {
                match self {
                    $(Self::$kind(disk) => disk.read(at, into).await,)+
                }
            }

            async fn write(
                &self,
                at: $crate::units::Lba,
                from: &[$crate::buffer::Buffer],
                durability: $crate::disk::Durability,
            ) -> Result<(), $crate::disk::DiskError> {
                match self {
                    $(Self::$kind(disk) => disk.write(at, from, durability).await,)+
                }
            }

            async fn flush(&self) -> Result<(), $crate::disk::DiskError> {
                match self {
                    $(Self::$kind(disk) => disk.flush().await,)+
                }
            }

            async fn deallocate(
                &self,
                at: $crate::units::Lba,
                blocks: u64,
            ) -> Result<(), $crate::disk::DiskError> {
                match self {
                    $(Self::$kind(disk) => disk.deallocate(at, blocks).await,)+
                }
            }

            async fn write_zeroes(
                &self,
                at: $crate::units::Lba,
                blocks: u64,
                space: $crate::disk::Space,
                durability: $crate::disk::Durability,
            ) -> Result<(), $crate::disk::DiskError> {
                match self {
                    $(Self::$kind(disk) => {
                        disk.write_zeroes(at, blocks, space, durability).await
                    })+
                }
            }

            async fn write_uncorrectable(
                &self,
                at: $crate::units::Lba,
                blocks: u64,
            ) -> Result<(), $crate::disk::DiskError> {
                match self {
                    $(Self::$kind(disk) => disk.write_uncorrectable(at, blocks).await,)+
                }
            }
        }
    };
}
