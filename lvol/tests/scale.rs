//! A pool of 100 TiB with 10,000 volumes: what it takes to open it after a crash. Ignored, as it takes a
//! while; `cargo test --release -p corebay-lvol --test scale -- --ignored --nocapture` prints it.

mod support;

use corebay_core::{disk::Durability, units::BlockSize};
use support::{Medium, Node};

const POOL_BYTES: u64 = 100 << 40;
const VOLUMES: u64 = 10_000;

#[test]
#[ignore = "takes a minute"]
fn a_pool_of_100_tib_opens_in_seconds() {
    let medium = Medium::new(BlockSize::B4096, POOL_BYTES, false, 1);
    let node = Node::create(&medium);
    let blocks = BlockSize::B4096.blocks_in(1 << 40);
    for number in 0..VOLUMES {
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
    let volume = node.open(node.pool.find("v9999").unwrap());
    let at = 9999 * 7919 % blocks;
    assert_eq!(node.tags(&volume, at, 1), [10_000]);
    println!(
        "opened after {:?}, first read after {:?}",
        opened,
        clock.now()
    );
    assert!(clock.now().0 < 5_000_000_000, "it took {:?}", clock.now());
    node.checked();
}
