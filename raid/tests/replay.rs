//! Replays amid which something fails, and what older programs wrote.

use std::rc::Rc;

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    units::{BlockSize, Lba},
};
use corebay_raid::{
    array::Array, geometry::Level, state::RoleState, superblock::VERSION, sweep::Pace,
};

use crate::support::{
    bench::{Bench, Machine, small},
    power::{Power, PowerDisk},
};

type Shared = Rc<Array<PowerDisk>>;

/// Writes one block of each of these values.
fn put(bench: &Bench, array: &Shared, blocks: &[(u64, u8)]) {
    for &(at, value) in blocks {
        let (array, pool) = (array.clone(), bench.pool.clone());
        let written = bench.run(async move {
            let mut buffer = pool.allocate(512).await;
            buffer.bytes_mut().fill(value);
            array.write(Lba(at), &[buffer], Durability::Cached).await
        });
        assert_eq!(written, Some(Ok(())));
    }
}

fn get(bench: &Bench, array: &Shared, at: u64) -> Result<u8, DiskError> {
    let (array, pool) = (array.clone(), bench.pool.clone());
    let read = bench.run(async move {
        let buffer = pool.allocate(512).await;
        array.read(Lba(at), std::slice::from_ref(&buffer)).await?;
        Ok(buffer.bytes()[0])
    });
    read.expect("power")
}

fn mismatches(bench: &Bench, array: &Shared) -> u64 {
    let array = array.clone();
    let scrub = bench.run(async move { array.scrub(Pace::default()).await });
    scrub.unwrap().unwrap().mismatch_count
}

/// Its part is void then, and it has the old rows, or what its cache kept of the new ones: it comes back with
/// just what it missed, and that is among it.
#[test]
fn a_member_that_fails_amid_a_replay_has_missed_what_was_replayed() {
    for (seed, strip) in (0..8).flat_map(|seed| [(seed, 0), (seed, 3)]) {
        let power = Power::new(seed, false);
        let machine = Machine::new(small(Level::Raid5, 4, BlockSize::B512), true, &power);
        let geometry = machine.geometry;
        // One record: a later one of the same region would mark it as well.
        let blocks = [(0, 1)];
        let bench = Bench::new(&power);
        let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        put(&bench, &array, &blocks);
        drop((bench, array));
        machine.lose_power();
        // Of data, or of parity.
        let role = geometry.role_of(0, strip);
        machine.media[role].borrow_mut().gone_before = Some(geometry.row_lba(0, 0).0);
        let bench = Bench::new(&power);
        let (array, report) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        assert_eq!(report.replayed, 1);
        let state = array.assembled().state().roles[role].state;
        assert_eq!(state, RoleState::Failed);
        {
            let medium = &mut *machine.media[role].borrow_mut();
            (medium.gone, medium.gone_before) = (false, None);
        }
        let returning = array.clone();
        let returned = bench.run(async move {
            returning.take_back(role).await?;
            returning.rebuild(role, Pace::default()).await
        });
        assert_eq!(returned, Some(Ok(())), "seed {seed}");
        for (at, value) in blocks {
            assert_eq!(
                get(&bench, &array, at),
                Ok(value),
                "seed {seed}, role {role}"
            );
        }
        assert_eq!(mismatches(&bench, &array), 0, "seed {seed}, role {role}");
    }
}

/// Two records of the same rows have a part each that cannot be read, and neither can be made of what is left:
/// parity is made to agree with the data, also where the power fails before that.
#[test]
fn what_a_replay_cannot_make_is_made_to_agree_and_told() {
    for cut in [false, true] {
        let power = Power::new(1, false);
        let machine = Machine::new(small(Level::Raid5, 3, BlockSize::B512), true, &power);
        let geometry = machine.geometry;
        let strip = u64::from(geometry.strip_bytes()) / 512;
        let bench = Bench::new(&power);
        let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        put(&bench, &array, &[(0, 1), (strip, 2)]);
        drop((bench, array));
        machine.lose_power();
        let slot = |number: u64| {
            let at = geometry.journal_offset() + number * geometry.slot_bytes() + 4096;
            geometry.member_lba(at).0
        };
        for (record, role) in [(0, geometry.role_of(0, 0)), (1, geometry.role_of(0, 2))] {
            machine.media[role].borrow_mut().bad.insert(slot(record));
        }
        let mut bench = Bench::new(&power);
        let (mut array, report) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        assert_eq!(report.unmade, [0]);
        if cut {
            drop((bench, array));
            machine.lose_power();
            bench = Bench::new(&power);
            array = machine.assemble(&bench, &machine.all()).unwrap().unwrap().0;
        }
        assert!(array.assembled().needs_resync());
        let resyncing = array.clone();
        let resynced = bench.run(async move { resyncing.resync(Pace::default()).await });
        assert_eq!(resynced, Some(Ok(())));
        assert!(!array.assembled().needs_resync());
        // It was only in the part that is lost, and in a cache.
        assert!(matches!(get(&bench, &array, 0), Ok(0 | 1)));
        assert_eq!(get(&bench, &array, strip), Ok(2));
        assert_eq!(mismatches(&bench, &array), 0);
    }
}

/// Of the format before, which knew no record of several stripes: it is read, and all that is written is of the
/// present one, which programs of the time before leave alone.
#[test]
fn an_array_of_the_format_before_is_taken_and_becomes_one_of_today() {
    let power = Power::new(1, false);
    let machine = Machine::new(small(Level::Raid5, 4, BlockSize::B512), false, &power);
    let bench = Bench::new(&power);
    let version_of = |member: usize, set: Option<u8>| {
        let (disk, pool) = (machine.disk(member), bench.pool.clone());
        let versions = bench.run(async move {
            let mut versions = Vec::new();
            for at in [0, 128] {
                let mut buffer = pool.allocate(4096).await;
                disk.read(Lba(at), std::slice::from_ref(&buffer))
                    .await
                    .unwrap();
                if let Some(version) = set {
                    let mut bytes = buffer.bytes_mut();
                    bytes[8] = version;
                    bytes[12..16].fill(0);
                    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes);
                    bytes[12..16].copy_from_slice(&(crc as u32).to_le_bytes());
                }
                versions.push(u32::from(buffer.bytes()[8]));
                disk.write(Lba(at), &[buffer], Durability::Durable)
                    .await
                    .unwrap();
            }
            versions
        });
        versions.unwrap()
    };
    for member in machine.all() {
        assert_eq!(version_of(member, Some(1)), [1, 1]);
    }
    let (array, report) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
    assert!(report.refused.is_empty() && array.assembled().state().is_whole());
    for member in machine.all() {
        assert_eq!(version_of(member, None), [VERSION; 2]);
    }
}
