//! The checks. Each is a property of the `Disk` trait's contract, and takes a fresh bed.

mod clearing;
mod concurrency;
mod ends;
mod read_write;
mod uncorrectable;

use std::rc::Rc;

use corebay_core::{
    buffer::Buffer,
    disk::{Disk, DiskError, Durability},
    units::Lba,
};

pub use self::{
    clearing::{
        deallocated_blocks_are_zeroes, large_ranges_are_cleared, never_written_blocks_are_zeroes,
        written_zeroes_are_zeroes,
    },
    concurrency::{random_operations_agree_with_the_model, two_cores_see_whole_blocks},
    ends::{
        a_core_may_end_amid_operations, blocks_beyond_the_end_are_refused,
        dropped_operations_keep_their_buffers, flushes_and_durable_writes_complete,
        more_operations_than_the_depth_all_end, what_was_written_survives_reopening,
    },
    read_write::{
        edges_read_back, segments_and_offsets_read_back, the_largest_transfer_reads_back,
    },
    uncorrectable::{
        uncorrectable_blocks_fail_until_written, uncorrectable_blocks_survive_reopening,
    },
};
use crate::{Bed, TestCore, pattern};

/// A disk on a core of its own, with calls that run to their end.
struct Bench<D: Disk> {
    core: TestCore,
    disk: Rc<D>,
}

impl<D: Disk> Bench<D> {
    fn new<B: Bed<Disk = D>>(bed: &B) -> Self {
        let core = TestCore::single();
        let disk = Rc::new(bed.open(&core));
        Self { core, disk }
    }

    fn block_bytes(&self) -> usize {
        self.disk.info().block_size.bytes()
    }

    fn blocks(&self) -> u64 {
        self.disk.info().blocks
    }

    fn write(&self, lba: u64, tag: u64, count: usize) {
        let bytes = pattern::blocks(lba, tag, count, self.block_bytes());
        let buffer = self.core.filled(&bytes);
        let result = self.write_buffers(lba, vec![buffer], Durability::Cached);
        result.expect("the write");
    }

    fn write_buffers(
        &self,
        lba: u64,
        from: Vec<Buffer>,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let disk = self.disk.clone();
        self.core
            .run(async move { disk.write(Lba(lba), &from, durability).await })
    }

    fn read_bytes(&self, lba: u64, count: usize) -> Result<Vec<u8>, DiskError> {
        let disk = self.disk.clone();
        let buffer = self.core.buffer(count * self.block_bytes());
        self.core.run(async move {
            disk.read(Lba(lba), std::slice::from_ref(&buffer)).await?;
            Ok(buffer.bytes().to_vec())
        })
    }

    /// Reads blocks and says who wrote them.
    fn tags(&self, lba: u64, count: usize) -> Vec<u64> {
        let bytes = self.read_bytes(lba, count).expect("the read");
        let blocks = bytes.chunks_exact(self.block_bytes()).zip(lba..);
        blocks
            .map(|(block, lba)| pattern::tag_of(block, lba).expect("a whole block"))
            .collect()
    }

    fn expect(&self, lba: u64, tags: &[u64]) {
        assert_eq!(self.tags(lba, tags.len()), tags, "from block {lba} on");
    }

    /// Runs something on the disk to its end.
    fn on_disk<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        call: impl FnOnce(Rc<D>) -> F,
    ) -> T {
        self.core.run(call(self.disk.clone()))
    }
}
