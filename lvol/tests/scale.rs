//! A pool of 100 TiB with many volumes: what it takes to open it after a crash. 10,000 volumes where
//! `COREBAY_LONG` is set; `cargo test --release -p corebay-lvol scale -- --nocapture` prints it.

use corebay_core::{disk::Durability, units::BlockSize};

use crate::support::{Medium, Node, cuts::is_long};

const POOL_BYTES: u64 = 100 << 40;

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
    let clock = corebay_core::reactor::MachineClock::new();
    let node = Node::import(&medium).unwrap();
    let opened = clock.now();
    let volume = node.open(node.pool.find(&format!("v{}", volumes - 1)).unwrap());
    let at = (volumes - 1) * 7919 % blocks;
    assert_eq!(node.tags(&volume, at, 1), [volumes]);
    println!(
        "opened after {:?}, first read after {:?}",
        opened,
        clock.now()
    );
    assert!(clock.now().0 < 5_000_000_000, "it took {:?}", clock.now());
    node.checked();
}
