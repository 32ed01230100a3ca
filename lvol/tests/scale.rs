//! A pool of 100 TiB with many volumes: what it takes to open it after a crash. 10,000 volumes where
//! `COREBAY_LONG` is set; `cargo test --release -p corebay-lvol scale -- --nocapture` prints it.

use corebay_core::{disk::Durability, units::BlockSize};

use crate::support::{Medium, Node, cuts::is_long};

const POOL_BYTES: u64 = 100 << 40;

#[test]
fn volumes_are_read_together_where_their_pages_lie_near_each_other() {
    let medium = Medium::new(BlockSize::B4096, 1 << 30, false, 1);
    let node = Node::create(&medium);
    for number in 0..320 {
        node.create_volume(&format!("v{number}"), 256);
    }
    node.checkpoint();
    // Some of them lie elsewhere from then on.
    for number in (0..320).step_by(40) {
        let volume = node.open(node.pool.find(&format!("v{number}")).unwrap());
        node.write(&volume, 0, 1, number + 1, Durability::Cached)
            .unwrap();
    }
    node.checkpoint();
    drop(node);
    medium.count_reads();
    let node = Node::import(&medium).unwrap();
    let reads = medium.count_reads();
    // Of these 32 are of the journal.
    assert!(reads < 70, "{reads} reads for 320 volumes");
    assert_eq!(node.pool.volumes().len(), 320);
    for number in [0, 1, 40, 319] {
        let volume = node.open(node.pool.find(&format!("v{number}")).unwrap());
        let written = if number % 40 == 0 { number + 1 } else { 0 };
        assert_eq!(node.tags(&volume, 0, 1), [written]);
    }
    node.checked();
}

#[test]
fn a_pool_of_100_tib_opens_in_seconds() {
    let volumes = if is_long() { 10_000 } else { 10 };
    let medium = Medium::new(BlockSize::B4096, POOL_BYTES, false, 1);
    let node = Node::create(&medium);
    let blocks = BlockSize::B4096.blocks_in(1 << 40);
    for number in 0..volumes {
        let id = node.create_volume(&format!("v{number}"), blocks);
        let volume = node.open(id);
        let at = number * 7919 % blocks;
        node.write(&volume, at, 1, number + 1, Durability::Cached)
            .unwrap();
    }
    let status = node.pool.status();
    println!(
        "{} bytes of {}",
        status.total_bytes - status.free_bytes,
        status.total_bytes
    );
    drop(node);
    medium.count_reads();
    let clock = corebay_core::reactor::MachineClock::new();
    let node = Node::import(&medium).unwrap();
    let opened = clock.now();
    let reads = medium.count_reads();
    let volume = node.open(node.pool.find(&format!("v{}", volumes - 1)).unwrap());
    let at = (volumes - 1) * 7919 % blocks;
    assert_eq!(node.tags(&volume, at, 1), [volumes]);
    println!(
        "opened after {opened:?} and {reads} reads, first read after {:?}",
        clock.now()
    );
    // What it takes are reads; the time is the machine's, and bounded only so that it ends.
    let reads_max = if is_long() { 1_500 } else { 240 };
    assert!(reads < reads_max, "{reads} reads for {volumes} volumes");
    assert!(clock.now().0 < 60_000_000_000, "it took {:?}", clock.now());
    node.checked();
}
