//! Reading what was written: at the edges, in any shape, up to the largest transfer.

use corebay_core::{
    buffer::Buffer,
    disk::{Durability, SEGMENTS_MAX, TRANSFER_BYTES_MAX},
};

use super::Bench;
use crate::{Bed, pattern};

/// First and last blocks, single and many, across whatever borders lie inside.
pub fn edges_read_back<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let last = bench.blocks() - 1;
    bench.write(0, 1, 1);
    bench.write(last, 2, 1);
    bench.expect(0, &[1, 0]);
    bench.expect(last - 1, &[0, 2]);
    bench.write(last - 2, 3, 3);
    bench.expect(last - 3, &[0, 3, 3, 3]);
    for (tag, around) in [(4, 8), (5, 64), (6, 512), (7, 4096)] {
        bench.write(around - 3, tag, 7);
        bench.expect(around - 4, &[0, tag, tag, tag, tag, tag, tag, tag, 0]);
    }
    bench.write(0, 8, 2);
    bench.expect(0, &[8, 8, 0]);
}

/// 1 to [`SEGMENTS_MAX`] buffers of any lengths, at offsets in their blocks that are multiples of a
/// block, both scattered and following one another.
pub fn segments_and_offsets_read_back<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let size = bench.block_bytes();
    for segments in 1..=SEGMENTS_MAX {
        let tag = segments as u64;
        let at = 1000 * tag + tag;
        let lengths: Vec<usize> = (0..segments).map(|n| 1 + (n * 5 + segments) % 4).collect();
        let count = lengths.iter().sum();
        let content = pattern::blocks(at, tag, count, size);
        let (mut from, mut into) = (Vec::new(), Vec::new());
        let mut done = 0;
        for (place, blocks) in lengths.iter().enumerate() {
            // Each window begins some blocks into its own buffer.
            let skip = place % 3 * size;
            let bytes = blocks * size;
            let mut whole = bench.core.buffer(skip + bytes);
            whole.bytes_mut()[skip..].copy_from_slice(&content[done..done + bytes]);
            from.push(whole.slice(skip..skip + bytes));
            into.push(bench.core.buffer(skip + bytes).slice(skip..skip + bytes));
            done += bytes;
        }
        bench.write_buffers(at, from, Durability::Cached).unwrap();
        let mut expected = vec![tag; count];
        expected.push(0);
        bench.expect(at, &expected);
        assert_eq!(read_into(&bench, at, into), content, "{segments} segments");
        let one = bench.core.buffer(count * size);
        let cut: Vec<Buffer> = {
            let mut start = 0;
            let cut = lengths.iter().map(|blocks| {
                let window = one.slice(start..start + blocks * size);
                start += blocks * size;
                window
            });
            cut.collect()
        };
        assert_eq!(read_into(&bench, at, cut), content, "{segments} joined");
    }
}

fn read_into<D: corebay_core::disk::Disk>(bench: &Bench<D>, at: u64, into: Vec<Buffer>) -> Vec<u8> {
    bench.on_disk(|disk| async move {
        let at = corebay_core::units::Lba(at);
        disk.read(at, &into).await.expect("the read");
        into.iter().flat_map(|b| b.bytes().to_vec()).collect()
    })
}

/// [`TRANSFER_BYTES_MAX`] in one buffer, and in [`SEGMENTS_MAX`].
pub fn the_largest_transfer_reads_back<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let count = TRANSFER_BYTES_MAX / bench.block_bytes();
    bench.write(5, 1, count);
    let mut expected = vec![1; count];
    bench.expect(5, &expected);
    let content = pattern::blocks(5, 2, count, bench.block_bytes());
    let pieces = content.chunks(TRANSFER_BYTES_MAX / SEGMENTS_MAX);
    let from = pieces.map(|piece| bench.core.filled(piece)).collect();
    bench.write_buffers(5, from, Durability::Cached).unwrap();
    expected.fill(2);
    bench.expect(5, &expected);
    let last = bench.blocks() - count as u64;
    bench.write(last, 3, count);
    expected.fill(3);
    bench.expect(last, &expected);
}
