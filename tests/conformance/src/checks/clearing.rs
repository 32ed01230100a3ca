//! Zeroes: never written, written as such, deallocated.

use corebay_core::{
    disk::{Disk, Durability, Space, TRANSFER_BYTES_MAX},
    units::Lba,
};

use super::Bench;
use crate::{Bed, test_core::FILLING};

/// A fresh medium is zeroes, at its edges and between.
pub fn never_written_blocks_are_zeroes<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let last = bench.blocks() - 1;
    for at in [0, 1, 77, last / 2, last - 8, last] {
        let count = usize::try_from((last + 1 - at).min(9)).unwrap();
        bench.expect(at, &vec![0; count]);
    }
}

/// Ranges to clear, in blocks: aligned and not, small and across what a medium may work in.
const RANGES: [(u64, u64); 8] = [
    (0, 1),
    (3, 1),
    (8, 8),
    (13, 3),
    (64, 64),
    (99, 130),
    (1, 700),
    (1024, 1024),
];

fn clear_and_check<B: Bed>(bed: &B, how: impl Fn(&Bench<B::Disk>, Lba, u64)) {
    const AROUND: u64 = 5;
    let bench = Bench::new(bed);
    let size = bench.block_bytes();
    for (number, (start, count)) in RANGES.into_iter().enumerate() {
        // Each in a place of its own, with neighbours that tell whether too much was cleared.
        let base = (number as u64 + 1) * 4096;
        let around = base + start - AROUND..base + start + count + AROUND;
        let steps = around.clone().step_by(TRANSFER_BYTES_MAX / size);
        let spans: Vec<(u64, usize)> = steps
            .map(|at| {
                let most = (TRANSFER_BYTES_MAX / size) as u64;
                (at, usize::try_from(most.min(around.end - at)).expect("few"))
            })
            .collect();
        for &(at, blocks) in &spans {
            let buffer = bench.core.buffer(blocks * size);
            let written = bench.write_buffers(at, vec![buffer], Durability::Cached);
            written.expect("the write");
        }
        how(&bench, Lba(base + start), count);
        let mut content = Vec::new();
        for &(at, blocks) in &spans {
            content.extend(bench.read_bytes(at, blocks).expect("the read"));
        }
        let edge = usize::try_from(AROUND).expect("few") * size;
        let mut expected = vec![0; content.len()];
        let end = expected.len() - edge;
        expected[..edge].fill(FILLING);
        expected[end..].fill(FILLING);
        assert!(content == expected, "{count} blocks from {start} on");
        // What was cleared can be written again.
        bench.write(base + start, 99, 1);
        bench.expect(base + start, &[99]);
    }
}

/// Write zeroes, keeping the space and giving it back, durable and not.
pub fn written_zeroes_are_zeroes<B: Bed>(bed: &mut B) {
    for space in [Space::Keep, Space::Deallocate] {
        for durability in [Durability::Cached, Durability::Durable] {
            clear_and_check(bed, |bench, at, blocks| {
                bench
                    .on_disk(|disk| async move {
                        disk.write_zeroes(at, blocks, space, durability).await
                    })
                    .expect("write zeroes");
            });
        }
    }
}

/// Deallocated blocks read as zeroes, whether or not space was freed.
pub fn deallocated_blocks_are_zeroes<B: Bed>(bed: &mut B) {
    clear_and_check(bed, |bench, at, blocks| {
        bench
            .on_disk(|disk| async move { disk.deallocate(at, blocks).await })
            .expect("deallocate");
    });
}

/// The whole medium at once, all but its first and last block, and nothing at all.
pub fn large_ranges_are_cleared<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let all = bench.blocks();
    let places = [0, 1, all / 3, all - 9, all - 1];
    for (deallocate, space) in [
        (true, Space::Deallocate),
        (false, Space::Deallocate),
        (false, Space::Keep),
    ] {
        for place in places {
            bench.write(place, 5, 1);
        }
        let clear = |at: u64, blocks: u64| {
            bench
                .on_disk(|disk| async move {
                    match deallocate {
                        true => disk.deallocate(Lba(at), blocks).await,
                        false => {
                            let durability = Durability::Cached;
                            disk.write_zeroes(Lba(at), blocks, space, durability).await
                        }
                    }
                })
                .expect("clearing");
        };
        clear(1, all - 2);
        for place in places {
            let kept = place == 0 || place == all - 1;
            bench.expect(place, &[u64::from(kept) * 5]);
        }
        clear(0, all);
        bench.expect(0, &[0]);
        bench.expect(all - 1, &[0]);
    }
}
