//! The fast path takes nothing from the heap: overwrites and reads of a volume, also with snapshots
//! beneath and across extents. Nor do first writes and writes after a snapshot, once the volume has an extent
//! of its own there.

use std::rc::Rc;

use crate::support::{context, named, options};
use corebay_conformance::{TestCore, counting::taken};
use corebay_core::{
    disk::{
        Disk, Durability,
        ram::{RamDisk, RamMedium},
    },
    units::{BlockSize, Lba},
};
use corebay_lvol::{Pool, Volume};

/// Makes a volume of which everything was written, and again after each of some snapshots.
async fn volume(
    pool: &Pool<RamDisk>,
    buffer: &corebay_core::buffer::Buffer,
) -> Rc<Volume<RamDisk>> {
    let id = pool.create_volume(&named("v"), 2048, false).await.unwrap();
    let volume = Rc::new(pool.open(id).unwrap());
    let whole = std::slice::from_ref(buffer);
    for at in (0..2048).step_by(256) {
        volume
            .write(Lba(at), whole, Durability::Cached)
            .await
            .unwrap();
    }
    for number in 0..8u64 {
        let name = named(&format!("s{number}"));
        pool.snapshot(&[(id, name)]).await.unwrap();
        let part = [buffer.slice(0..4096 * 3)];
        for at in (0..2048).step_by(32) {
            let at = Lba(at + number * 3);
            volume.write(at, &part, Durability::Cached).await.unwrap();
        }
    }
    volume
}

#[test]
fn overwrites_and_reads_allocate_nothing() {
    let core = TestCore::single();
    let medium = RamMedium::new(BlockSize::B4096, BlockSize::B4096.blocks_in(256 << 20)).unwrap();
    let disk = RamDisk::new(medium, &core.reactor);
    let (context, buffer) = (context(&core), core.buffer(1 << 20));
    let (pool, parts) = (context.clone(), buffer.clone());
    let (pool, volume) = core.run(async move {
        let pool = Pool::create(&pool, disk, &options()).await.unwrap();
        let volume = volume(&pool, &parts).await;
        (pool, volume)
    });
    let taken = core.run(async move {
        let two = [buffer.slice(0..4096), buffer.slice(8192..16_384)];
        let before = taken();
        for round in 0..500u64 {
            // The blocks that were written after the last snapshot, and what lies around them.
            let at = Lba(round % 64 * 32 + 21);
            volume.write(at, &two, Durability::Cached).await.unwrap();
            volume.read(at, &two).await.unwrap();
            let around = Lba(round % 50 * 32 + 10);
            volume
                .read(around, std::slice::from_ref(&buffer))
                .await
                .unwrap();
        }
        taken() - before
    });
    assert_eq!(taken, 0);
    drop(pool);
}

#[test]
fn first_writes_allocate_nothing_where_the_volume_has_an_extent() {
    let core = TestCore::single();
    let medium = RamMedium::new(BlockSize::B4096, BlockSize::B4096.blocks_in(1 << 30)).unwrap();
    let disk = RamDisk::new(medium, &core.reactor);
    let (context, buffer) = (context(&core), core.buffer(1 << 20));
    let taken = core.run(async move {
        let pool = Pool::create(&context, disk, &options()).await.unwrap();
        let id = pool.create_volume(&named("v"), 2048, false).await.unwrap();
        let volume = pool.open(id).unwrap();
        let (one, mut all) = ([buffer.slice(0..4096)], Vec::new());
        for round in 0..2u64 {
            pool.checkpoint().await.unwrap();
            let mut before = 0;
            // Few enough that no checkpoint is due; each round leaves some blocks as they were before it.
            for number in 0..88 - round * 8 {
                if number == 16 {
                    before = taken();
                }
                let at = Lba(number % 8 * 256 + number / 8);
                volume.write(at, &one, Durability::Cached).await.unwrap();
            }
            all.push(taken() - before);
            let name = named(&format!("s{round}"));
            pool.snapshot(&[(id, name)]).await.unwrap();
        }
        all
    });
    assert_eq!(taken, [0, 0]);
}
