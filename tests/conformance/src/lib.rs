//! The one suite that every block device is held to: disks, arrays and volumes alike.
//!
//! A [`Bed`] says how to open the device; [`conformance_tests!`] makes a test of each check in
//! [`checks`], for blocks of 512 and of 4096 bytes. The checks use nothing but the
//! [`Disk`] trait, and run on real reactors that are turned by hand.
//!
//! Invariants:
//! - A check fails with a panic that names the seed, where it used one.
//! - Each check gets a bed of its own, whose medium was never written.

pub mod beds;
pub mod checks;
pub mod counting;
pub mod history;
pub mod nvme;
pub mod pattern;
pub mod scratch;
mod test_core;

use corebay_core::{disk::Disk, units::BlockSize};

pub use test_core::{Outcome, TestCore};

/// A medium to test, and how to reach it.
pub trait Bed: Sync {
    /// The device under test.
    type Disk: Disk;

    /// This core's device over the medium. Cores may be threads of their own.
    fn open(&self, core: &TestCore) -> Self::Disk;

    /// Closes the medium and opens it again, as a restart does; every device over it has been
    /// dropped. False where the medium does not outlive that.
    fn reopen(&mut self) -> bool {
        false
    }

    /// How many operations one core's device has in flight at most, if that is bounded.
    fn depth(&self) -> Option<usize> {
        None
    }
}

/// Runs a check over fresh beds of both block sizes.
pub fn for_block_sizes<B: Bed>(make: impl Fn(BlockSize) -> B, check: impl Fn(&mut B)) {
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        println!("blocks of {} bytes", block_size.bytes());
        check(&mut make(block_size));
    }
}

/// Calls `$then!` with the name of every check.
#[doc(hidden)]
#[macro_export]
macro_rules! for_every_check {
    ($then:path, $($first:tt)*) => {
        $then!(
            $($first)*
            edges_read_back,
            segments_and_offsets_read_back,
            the_largest_transfer_reads_back,
            never_written_blocks_are_zeroes,
            written_zeroes_are_zeroes,
            deallocated_blocks_are_zeroes,
            large_ranges_are_cleared,
            random_operations_agree_with_the_model,
            flushes_and_durable_writes_complete,
            what_was_written_survives_reopening,
            blocks_beyond_the_end_are_refused,
            uncorrectable_blocks_fail_until_written,
            uncorrectable_blocks_survive_reopening,
            more_operations_than_the_depth_all_end,
            dropped_operations_keep_their_buffers,
            a_core_may_end_amid_operations,
            two_cores_see_whole_blocks,
        );
    };
}

/// Runs every check, one after the other, over the beds that an expression makes: for beds that are
/// too dear to be made side by side.
#[macro_export]
macro_rules! run_every_check {
    ($make:expr) => {
        $crate::for_every_check!($crate::run_every_check, $make,)
    };
    ($make:expr, $($check:ident),+ $(,)?) => {
        $(
            println!(stringify!($check));
            $crate::for_block_sizes($make, $crate::checks::$check);
        )+
    };
}

/// Makes a test of every check, or of those that are named, over the beds that an expression (a
/// function of the block size) makes.
#[macro_export]
macro_rules! conformance_tests {
    ($make:expr) => {
        $crate::for_every_check!($crate::conformance_tests, $make,);
    };
    ($make:expr, $($check:ident),+ $(,)?) => {
        $(
            #[test]
            fn $check() {
                $crate::for_block_sizes($make, $crate::checks::$check);
            }
        )+
    };
}
