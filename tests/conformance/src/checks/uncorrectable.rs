//! Blocks written uncorrectable.

use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    units::Lba,
};

use super::Bench;
use crate::Bed;

fn spoil<D: Disk>(bench: &Bench<D>, at: u64, blocks: u64) -> Result<(), DiskError> {
    bench.on_disk(|disk| async move { disk.write_uncorrectable(Lba(at), blocks).await })
}

/// Reading one fails, also beside good ones, until it is written or cleared; where the disk does not
/// know that, it says so and nothing changes.
pub fn uncorrectable_blocks_fail_until_written<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    bench.write(10, 1, 10);
    if !bench.disk.info().write_uncorrectable {
        assert_eq!(spoil(&bench, 12, 3), Err(DiskError::Unsupported));
        bench.expect(10, &[1; 10]);
        return;
    }
    spoil(&bench, 12, 5).expect("write uncorrectable");
    let bad = Err(DiskError::UnrecoveredRead);
    assert_eq!(bench.read_bytes(12, 1), bad);
    assert_eq!(bench.read_bytes(10, 10), bad);
    assert_eq!(bench.read_bytes(16, 2), bad);
    bench.expect(10, &[1, 1]);
    bench.expect(17, &[1, 1, 1]);
    bench.write(13, 2, 2);
    bench.expect(13, &[2, 2]);
    assert_eq!(bench.read_bytes(12, 2), bad);
    assert_eq!(bench.read_bytes(14, 2), bad);
    bench.write(11, 3, 2);
    bench.expect(10, &[1, 3, 3, 2, 2]);
    let cleared = bench.on_disk(|disk| async move { disk.deallocate(Lba(15), 1).await });
    cleared.expect("deallocate");
    bench.expect(14, &[2, 0]);
    let zeroed = bench.on_disk(|disk| async move {
        disk.write_zeroes(Lba(16), 1, Space::Keep, Durability::Cached)
            .await
    });
    zeroed.expect("write zeroes");
    bench.expect(10, &[1, 3, 3, 2, 2, 0, 0, 1, 1, 1]);
}

/// On a medium that outlives a restart, so do its bad blocks, and their healing.
pub fn uncorrectable_blocks_survive_reopening<B: Bed>(bed: &mut B) {
    let first = Bench::new(bed);
    let last = first.blocks() - 1;
    if !first.disk.info().write_uncorrectable {
        return;
    }
    first.write(0, 1, 8);
    spoil(&first, 2, 4).expect("write uncorrectable");
    spoil(&first, last, 1).expect("write uncorrectable");
    first.write(3, 2, 1);
    drop(first);
    if !bed.reopen() {
        return;
    }
    let second = Bench::new(bed);
    let bad = Err(DiskError::UnrecoveredRead);
    second.expect(0, &[1, 1]);
    second.expect(3, &[2]);
    second.expect(6, &[1, 1]);
    for lba in [2, 4, 5, last] {
        assert_eq!(second.read_bytes(lba, 1), bad, "block {lba}");
    }
    second.write(2, 3, 4);
    second.write(last, 3, 1);
    drop(second);
    assert!(bed.reopen());
    let third = Bench::new(bed);
    third.expect(0, &[1, 1, 3, 3, 3, 3, 1, 1]);
    third.expect(last, &[3]);
}
