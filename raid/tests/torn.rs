//! Rows in which a crash has torn blocks of more members than the level bears to lose, where there is no
//! journal.

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_raid::{
    geometry::{Consistency, Geometry, Level, Wish},
    sweep::{Pace, SweepError},
};

use crate::{
    members::Shared,
    support::{
        bench::{Bench, Machine, small},
        ec,
        power::Power,
    },
};

type Read = Result<u8, DiskError>;
const LOST: Read = Err(DiskError::UnrecoveredRead);

/// What the strips hold in the first row of the first stripe, and what is written there.
const OLD: u8 = 0x11;
const NEW: u8 = 0x3c;

/// A machine after a crash.
struct Torn {
    machine: Machine,
    bench: Bench,
}

impl Torn {
    /// The crash has torn these strips' blocks in the first row.
    fn new(level: Level, roles: usize, strips: std::ops::Range<usize>, volatile: bool) -> Self {
        let wish = Wish {
            consistency: Consistency::DirtyRegions,
            ..small(level, roles, BlockSize::B512)
        };
        let power = Power::new(3, true);
        let torn = Self {
            machine: Machine::new(wish, volatile, &power),
            bench: Bench::new(&power),
        };
        let array = torn.assemble(&torn.machine.all());
        for strip in 0..torn.geometry().data() {
            let old = OLD + strip as u8;
            torn.write(&array, strip, old).unwrap().unwrap();
        }
        drop(array);
        for medium in &torn.machine.media {
            medium.borrow_mut().let_spoil(true);
        }
        let at = torn.geometry().row_lba(0, 0).0;
        for strip in strips {
            torn.machine.media[torn.role_of(strip)]
                .borrow_mut()
                .tear(at);
        }
        torn
    }

    /// The same in media of its own, and with power of its own.
    fn fork(&self, seed: u64) -> Self {
        let power = Power::new(seed, true);
        Self {
            machine: self.machine.fork(&power),
            bench: Bench::new(&power),
        }
    }

    fn geometry(&self) -> Geometry {
        self.machine.geometry
    }

    fn role_of(&self, strip: usize) -> usize {
        self.geometry().role_of(0, strip)
    }

    fn assemble(&self, members: &[usize]) -> Shared {
        let assembly = self.machine.assemble(&self.bench, members);
        assembly.unwrap().unwrap().0
    }

    fn assemble_without(&self, role: usize) -> Shared {
        let mut members = self.machine.all();
        members.remove(role);
        self.assemble(&members)
    }

    fn lba(&self, strip: usize) -> Lba {
        let geometry = self.geometry();
        let offset = geometry.array_offset(0, strip, 0);
        Lba(geometry.block_size().blocks_in(offset))
    }

    /// Nothing where the power fails.
    fn write(&self, array: &Shared, strip: usize, byte: u8) -> Option<Result<(), DiskError>> {
        let (array, pool, at) = (array.clone(), self.bench.pool.clone(), self.lba(strip));
        self.bench.run(async move {
            let mut buffer = pool.allocate(512).await;
            buffer.bytes_mut().fill(byte);
            array.write(at, &[buffer], Durability::Durable).await
        })
    }

    fn read(&self, array: &Shared, strip: usize) -> Read {
        let (array, pool, at) = (array.clone(), self.bench.pool.clone(), self.lba(strip));
        let read = self.bench.run(async move {
            let into = pool.allocate(512).await;
            array.read(at, std::slice::from_ref(&into)).await?;
            let bytes = into.bytes();
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture");
            Ok(bytes[0])
        });
        read.unwrap()
    }

    fn row(&self, array: &Shared) -> Vec<Read> {
        let strips = 0..self.geometry().data();
        strips.map(|strip| self.read(array, strip)).collect()
    }

    fn resync(&self, array: &Shared) -> Result<(), SweepError> {
        let array = array.clone();
        let resync = async move { array.resync(Pace::default()).await };
        self.bench.run(resync).unwrap()
    }
}

/// The row where the strips before `new` were written, and those from there to `lost` are not to be had.
fn row(strips: usize, new: usize, lost: usize) -> Vec<Read> {
    let strip = |strip: usize| match strip {
        strip if strip < new => Ok(NEW + strip as u8),
        strip if strip < lost => LOST,
        strip => Ok(OLD + strip as u8),
    };
    (0..strips).map(strip).collect()
}

/// Levels, and one strip more than they bear to lose.
fn levels() -> [(Level, usize, usize); 3] {
    [(Level::Raid5, 4, 2), (Level::Raid6, 6, 3), (ec(6, 3), 9, 4)]
}

/// What is lost can be written, one block after the other; then the row has its parity again.
#[test]
fn a_torn_row_is_written_block_by_block() {
    for (level, roles, lost) in levels() {
        let torn = Torn::new(level, roles, 0..lost, false);
        let strips = torn.geometry().data();
        let array = torn.assemble(&torn.machine.all());
        for strip in 0..lost {
            assert_eq!(torn.row(&array), row(strips, strip, lost), "{level}");
            let resynced = torn.resync(&array);
            assert_eq!(resynced, Err(SweepError::Lost { stripe: 0 }), "{level}");
            let written = torn.write(&array, strip, NEW + strip as u8);
            assert_eq!(written, Some(Ok(())), "{level}, strip {strip}");
        }
        assert_eq!(torn.resync(&array), Ok(()), "{level}");
        drop(array);
        for role in 0..roles {
            let torn = torn.fork(role as u64);
            let array = torn.assemble_without(role);
            assert_eq!(torn.row(&array), row(strips, lost, lost), "{level}, {role}");
        }
    }
}

/// Of such a row nothing is made of what does not belong together, whoever is lost later.
#[test]
fn what_a_torn_row_has_lost_is_unreadable_and_never_wrong() {
    for (level, roles, lost) in levels() {
        for new in 1..=lost {
            let torn = Torn::new(level, roles, 0..lost, false);
            let strips = torn.geometry().data();
            let array = torn.assemble(&torn.machine.all());
            for strip in 0..new {
                torn.write(&array, strip, NEW + strip as u8)
                    .unwrap()
                    .unwrap();
            }
            drop(array);
            for away in 0..roles {
                let torn = torn.fork(away as u64);
                let mut expected = row(strips, new, lost);
                let own = (0..strips).find(|&strip| torn.role_of(strip) == away);
                if let Some(strip) = own.filter(|_| new < lost) {
                    expected[strip] = LOST;
                }
                let array = torn.assemble_without(away);
                assert_eq!(torn.row(&array), expected, "{level}, {new}, {away}");
                // Nor does its next member get what is not known.
                torn.machine.media[away].borrow_mut().wipe();
                array.set_member(away, Some(torn.machine.disk(away)));
                let (rebuilding, pool) = (array.clone(), torn.bench.pool.clone());
                let rebuilt = torn.bench.run(async move {
                    let rng = &mut Rng::from_seed(5);
                    rebuilding.replace(away, rng, &pool).await.unwrap();
                    rebuilding.rebuild(away, Pace::default()).await
                });
                assert_eq!(rebuilt, Some(Ok(())), "{level}, {new}, {away}");
                assert_eq!(torn.row(&array), expected, "{level}, {new}, {away}");
            }
        }
    }
}

/// With data of a missing member in the row, or parity that cannot be made unreadable, nothing is changed.
#[test]
fn a_torn_row_whose_parity_counts_is_not_written() {
    let lost = Some(Err(DiskError::UnrecoveredRead));
    for (level, roles, strips) in levels() {
        let torn = Torn::new(level, roles, 0..strips, false);
        let last = torn.role_of(torn.geometry().data() - 1);
        let array = torn.assemble_without(last);
        assert_eq!(torn.write(&array, 0, NEW), lost, "{level}");
        let torn = Torn::new(level, roles, 0..strips, false);
        let parity = torn.role_of(torn.geometry().data());
        torn.machine.media[parity].borrow_mut().let_spoil(false);
        let array = torn.assemble(&torn.machine.all());
        assert_eq!(torn.write(&array, 0, NEW), lost, "{level}");
    }
}

/// The power fails at any change of such a write, whatever caches keep; then another member is lost.
#[test]
fn a_crash_amid_such_a_write_leaves_nothing_wrong() {
    for (level, roles, lost) in [(Level::Raid5, 4, 2), (Level::Raid6, 6, 3)] {
        let torn = Torn::new(level, roles, 0..lost, true);
        for seed in 0..8 {
            for cut in 1.. {
                let mut torn = torn.fork(seed * 1000 + cut);
                let array = torn.assemble(&torn.machine.all());
                torn.machine.power.cut_after(cut);
                let written = torn.write(&array, 0, NEW);
                drop(array);
                torn.machine.lose_power();
                torn.bench = Bench::new(&torn.machine.power);
                let array = torn.assemble_without(torn.role_of(1));
                let mut row = torn.row(&array);
                if written.is_some() {
                    assert_eq!(row[0], Ok(NEW), "it was acknowledged");
                }
                assert!([Ok(NEW), LOST].contains(&row[0]), "{:?}", row[0]);
                row[0] = LOST;
                let expected = self::row(row.len(), 0, lost);
                assert_eq!(row, expected, "{level}, after {cut} changes");
                if written.is_some() {
                    assert!(cut > 2);
                    break;
                }
            }
        }
    }
}
