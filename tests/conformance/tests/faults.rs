//! What a fault disk does when it is told to.

use std::time::Duration;

use corebay_conformance::{Bed, TestCore, beds::RamBed};
use corebay_core::{
    disk::{
        Disk, DiskError, Durability, Space,
        fault::{Effect, FaultDisk, Faults, Operation, Rule},
        ram::RamDisk,
    },
    units::{BlockSize, Lba},
};

struct Bench {
    core: TestCore,
    faults: Faults,
    disk: std::rc::Rc<FaultDisk<RamDisk>>,
}

impl Bench {
    fn new() -> Self {
        let core = TestCore::single();
        let faults = Faults::new(1);
        let ram = RamBed::new(BlockSize::B512).open(&core);
        let disk = FaultDisk::new(ram, faults.clone(), &core.reactor);
        let disk = std::rc::Rc::new(disk);
        Self { core, faults, disk }
    }

    fn write(&self, lba: u64, content: u8, blocks: usize) -> Result<(), DiskError> {
        let buffer = self.core.filled(&vec![content; blocks * 512]);
        let disk = self.disk.clone();
        self.core.run(async move {
            // In two windows, so that a torn write may end in either.
            let cut = blocks / 2 * 512;
            let parts = [buffer.slice(0..cut), buffer.slice(cut..blocks * 512)];
            let parts = if cut == 0 { &parts[1..] } else { &parts[..] };
            disk.write(Lba(lba), parts, Durability::Cached).await
        })
    }

    fn read(&self, lba: u64, blocks: usize) -> Result<Vec<u8>, DiskError> {
        let (disk, buffer) = (self.disk.clone(), self.core.buffer(blocks * 512));
        self.core.run(async move {
            disk.read(Lba(lba), std::slice::from_ref(&buffer)).await?;
            Ok(buffer.bytes().chunks(512).map(|block| block[0]).collect())
        })
    }

    fn flush(&self) -> Result<(), DiskError> {
        let disk = self.disk.clone();
        self.core.run(async move { disk.flush().await })
    }
}

#[test]
fn the_nth_operation_of_a_kind_fails() {
    let bench = Bench::new();
    let fault = Effect::Fail(DiskError::WriteFault);
    bench
        .faults
        .add(Rule::new(fault).on(Operation::Write).nth(2));
    assert_eq!(bench.write(0, 1, 1), Ok(()));
    assert_eq!(bench.read(0, 1), Ok(vec![1]));
    assert_eq!(bench.write(0, 2, 1), Err(DiskError::WriteFault));
    assert_eq!(bench.read(0, 1), Ok(vec![1]));
    assert_eq!(bench.write(0, 3, 1), Ok(()));
    assert_eq!((bench.faults.seen(), bench.faults.had_effect()), (5, 1));
}

#[test]
fn a_range_of_blocks_fails() {
    let bench = Bench::new();
    let fault = Effect::Fail(DiskError::UnrecoveredRead);
    bench
        .faults
        .add(Rule::new(fault).on(Operation::Read).at(Lba(10), 2));
    assert_eq!(bench.read(8, 2), Ok(vec![0, 0]));
    assert_eq!(bench.read(9, 2), Err(DiskError::UnrecoveredRead));
    assert_eq!(bench.read(11, 4), Err(DiskError::UnrecoveredRead));
    assert_eq!(bench.read(12, 1), Ok(vec![0]));
    bench.faults.clear();
    assert_eq!(bench.read(9, 2), Ok(vec![0, 0]));
}

#[test]
fn random_faults_follow_the_seed() {
    let outcome = || -> Vec<bool> {
        let bench = Bench::new();
        let fault = Effect::Fail(DiskError::Internal(0));
        bench.faults.add(Rule::new(fault).one_in(4));
        (0..64).map(|_| bench.flush().is_ok()).collect()
    };
    let (first, second) = (outcome(), outcome());
    assert_eq!(first, second);
    let failed = first.iter().filter(|ok| !**ok).count();
    assert!((4..40).contains(&failed), "{failed} of 64");
}

#[test]
fn a_torn_write_leaves_its_first_blocks() {
    for written in 0..=6 {
        let bench = Bench::new();
        bench.write(0, 1, 6).unwrap();
        bench
            .faults
            .add(Rule::new(Effect::Torn { blocks: written }));
        assert_eq!(bench.write(0, 2, 6), Err(DiskError::WriteFault));
        bench.faults.clear();
        let expected: Vec<u8> = (0..6)
            .map(|lba| if lba < written { 2 } else { 1 })
            .collect();
        assert_eq!(bench.read(0, 6), Ok(expected));
    }
}

#[test]
fn what_hangs_carries_on_when_released() {
    let bench = Bench::new();
    bench.faults.add(Rule::new(Effect::Hang).times(1));
    let disk = bench.disk.clone();
    let zeroes = bench.core.spawn(async move {
        disk.write_zeroes(Lba(0), 8, Space::Keep, Durability::Cached)
            .await
    });
    for _ in 0..10 {
        bench.core.turn();
    }
    assert!(!zeroes.is_there());
    assert_eq!(bench.faults.hanging(), 1);
    assert_eq!(bench.write(0, 1, 1), Ok(()));
    bench.faults.release();
    bench.core.turn_until("the release", || zeroes.is_there());
    assert_eq!(zeroes.take(), Ok(()));
    assert_eq!(bench.read(0, 1), Ok(vec![0]));
}

#[test]
fn a_delay_takes_its_time() {
    let bench = Bench::new();
    let delay = Duration::from_millis(5);
    bench.faults.add(Rule::new(Effect::Delay(delay)).nth(1));
    let before = bench.core.now();
    assert_eq!(bench.flush(), Ok(()));
    assert!(bench.core.now().since(before) >= delay);
}

#[test]
fn gone_is_for_good_and_ends_what_hangs() {
    let bench = Bench::new();
    bench
        .faults
        .add(Rule::new(Effect::Hang).on(Operation::Flush));
    let disk = bench.disk.clone();
    let flush = bench.core.spawn(async move { disk.flush().await });
    bench.core.turn();
    bench.faults.remove();
    bench.core.turn_until("the end", || flush.is_there());
    assert_eq!(flush.take(), Err(DiskError::Gone));
    bench.faults.clear();
    assert_eq!(bench.write(0, 1, 1), Err(DiskError::Gone));
    assert_eq!(bench.read(0, 1), Err(DiskError::Gone));
}
