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

    fn lba(&self, stripe: u64, strip: usize) -> Lba {
        let geometry = self.geometry();
        let offset = geometry.array_offset(stripe, strip, 0);
        Lba(geometry.block_size().blocks_in(offset))
    }

    /// Nothing where the power fails.
    fn write(&self, array: &Shared, strip: usize, byte: u8) -> Option<Result<(), DiskError>> {
        self.write_rows(array, strip, 1, byte)
    }

    fn write_rows(
        &self,
        array: &Shared,
        strip: usize,
        rows: usize,
        byte: u8,
    ) -> Option<Result<(), DiskError>> {
        self.write_at(array, self.lba(0, strip), rows, byte)
    }

    fn write_at(
        &self,
        array: &Shared,
        at: Lba,
        rows: usize,
        byte: u8,
    ) -> Option<Result<(), DiskError>> {
        let (array, pool) = (array.clone(), self.bench.pool.clone());
        self.bench.run(async move {
            let mut buffer = pool.allocate(rows * 512).await;
            buffer.bytes_mut().fill(byte);
            array.write(at, &[buffer], Durability::Durable).await
        })
    }

    fn read(&self, array: &Shared, strip: usize) -> Read {
        self.read_at(array, self.lba(0, strip))
    }

    fn read_at(&self, array: &Shared, at: Lba) -> Read {
        let (array, pool) = (array.clone(), self.bench.pool.clone());
        let read = self.bench.run(async move {
            let into = pool.allocate(512).await;
            array.read(at, std::slice::from_ref(&into)).await?;
            let bytes = into.bytes();
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture");
            Ok(bytes[0])
        });
        read.unwrap()
    }

    /// A member that was away gets another disk, or returns; then it is rebuilt.
    fn rebuild(&self, array: &Shared, role: usize, is_new: bool) {
        let (array, pool) = (array.clone(), self.bench.pool.clone());
        if is_new {
            self.machine.media[role].borrow_mut().wipe();
        }
        array.set_member(role, Some(self.machine.disk(role)));
        let rebuilt = self.bench.run(async move {
            let rng = &mut Rng::from_seed(5);
            match is_new {
                true => drop(array.replace(role, rng, &pool).await?),
                false => array.take_back(role).await?,
            }
            array.rebuild(role, Pace::default()).await
        });
        assert_eq!(rebuilt, Some(Ok(())));
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

/// A resync without as many members as may be lost has nothing to compare: it says so, and is due again once
/// the array is whole.
#[test]
fn a_resync_without_a_member_is_due_again_once_the_array_is_whole() {
    let torn = Torn::new(Level::Raid5, 4, 0..0, false);
    let away = torn.role_of(2);
    let array = torn.assemble_without(away);
    torn.write(&array, 0, NEW).unwrap().unwrap();
    drop(array);
    let array = torn.assemble_without(away);
    assert_eq!(torn.resync(&array), Ok(()));
    assert!(array.assembled().needs_resync() && array.assembled().resync_waits());
    torn.rebuild(&array, away, true);
    assert!(array.assembled().needs_resync() && !array.assembled().resync_waits());
    assert_eq!(torn.resync(&array), Ok(()));
    assert!(!array.assembled().needs_resync());
    assert_eq!(torn.row(&array), row(3, 1, 1));
}

/// Parity that is not needed to stand in for a missing member shows that rows belong together: what cannot be
/// read of them later is made of it.
#[test]
fn rows_that_a_parity_is_left_for_are_compared_without_a_member() {
    for (level, roles, away) in [(Level::Raid6, 6, 1), (ec(6, 3), 9, 2)] {
        for lost_parity in [false, true] {
            let torn = Torn::new(level, roles, 0..0, false);
            let strips = torn.geometry().data();
            let away: Vec<_> = (1..=away).map(|strip| torn.role_of(strip)).collect();
            let mut members = torn.machine.all();
            members.retain(|member| !away.contains(member));
            let array = torn.assemble(&members);
            torn.write(&array, 0, NEW).unwrap().unwrap();
            drop(array);
            let at = torn.geometry().row_lba(0, 0).0;
            let tear = |strip| {
                torn.machine.media[torn.role_of(strip)]
                    .borrow_mut()
                    .tear(at)
            };
            if lost_parity {
                tear(strips);
            }
            let array = torn.assemble(&members);
            assert!(array.assembled().needs_resync() && !array.assembled().resync_waits());
            assert_eq!(torn.resync(&array), Ok(()), "{level}");
            assert!(!array.assembled().needs_resync(), "{level}");
            tear(strips - 1);
            assert_eq!(torn.row(&array), row(strips, 1, 1), "{level}");
        }
    }
}

/// A parity that a crash left behind is made to agree with what the others show, also without a member.
#[test]
fn a_resync_without_a_member_makes_the_last_parity_agree() {
    let torn = Torn::new(Level::Raid6, 6, 0..0, false);
    let array = torn.assemble(&torn.machine.all());
    let (away, second) = (torn.role_of(3), torn.role_of(5));
    let before = torn.machine.media[second].borrow().clone();
    torn.write(&array, 0, NEW).unwrap().unwrap();
    drop(array);
    // The crash came before the second parity changed.
    let at = torn.geometry().row_lba(0, 0).0;
    torn.machine.media[second]
        .borrow_mut()
        .put_back(at..at + 1, &before);
    let array = torn.assemble_without(away);
    assert_eq!(torn.resync(&array), Ok(()));
    assert!(!array.assembled().needs_resync());
    torn.rebuild(&array, away, true);
    drop(array);
    let lost = [torn.role_of(1), torn.role_of(4)];
    let mut members = torn.machine.all();
    members.retain(|member| !lost.contains(member));
    let array = torn.assemble(&members);
    assert_eq!(torn.row(&array), row(4, 1, 1));
}

/// A stripe that a rebuild has stepped over, as its members cannot mark blocks as lost, keeps no region but its
/// own from being made equal.
#[test]
fn a_resync_goes_round_a_stripe_that_a_rebuild_stepped_over() {
    let torn = Torn::new(Level::Raid5, 4, 0..1, false);
    for medium in &torn.machine.media {
        medium.borrow_mut().let_spoil(false);
    }
    let away = torn.role_of(2);
    let array = torn.assemble_without(away);
    // In another region.
    let (far, at) = (20, torn.lba(20, 0));
    torn.write_at(&array, at, 1, NEW).unwrap().unwrap();
    drop(array);
    // Without a word: what was marked is to be made equal.
    let array = torn.assemble_without(away);
    torn.machine.media[away].borrow_mut().wipe();
    array.set_member(away, Some(torn.machine.disk(away)));
    let (rebuilding, pool) = (array.clone(), torn.bench.pool.clone());
    let rebuilt = torn.bench.run(async move {
        let rng = &mut Rng::from_seed(5);
        rebuilding.replace(away, rng, &pool).await?;
        assert!(rebuilding.assembled().resync_waits());
        rebuilding.rebuild(away, Pace::default()).await
    });
    let lost = Err(SweepError::Lost { stripe: 0 });
    assert_eq!(rebuilt, Some(lost));
    assert!(array.assembled().needs_resync() && !array.assembled().resync_waits());
    assert_eq!(torn.resync(&array), lost);
    assert!(array.assembled().needs_resync(), "the stripe's own region");
    let geometry = torn.geometry();
    let (member, row) = (geometry.role_of(far, 0), geometry.row_lba(far, 0).0);
    torn.machine.media[member].borrow_mut().tear(row);
    assert_eq!(torn.read_at(&array, at), Ok(NEW));
}

/// The same where the crash has torn data: they stay lost, and can be written once the member is back.
#[test]
fn what_a_resync_without_a_member_has_not_compared_stays_lost_and_can_be_written() {
    for (level, roles, lost) in [(Level::Raid5, 4, 2), (Level::Raid6, 6, 1)] {
        let torn = Torn::new(level, roles, 0..lost, false);
        let strips = torn.geometry().data();
        let away = torn.role_of(strips - 1);
        let array = torn.assemble_without(away);
        // The second parity is needed for what is lost.
        let waits = level == Level::Raid5;
        let expected = match waits {
            true => Ok(()),
            false => Err(SweepError::Lost { stripe: 0 }),
        };
        assert_eq!(torn.resync(&array), expected, "{level}");
        assert!(array.assembled().needs_resync(), "{level}");
        assert_eq!(array.assembled().resync_waits(), waits, "{level}");
        for strip in 0..lost {
            assert_eq!(torn.read(&array, strip), LOST, "{level}");
        }
        torn.rebuild(&array, away, false);
        for strip in 0..lost {
            assert_eq!(torn.read(&array, strip), LOST, "{level}");
        }
        assert!(torn.resync(&array).is_err(), "{level}");
        for strip in 0..strips {
            let written = torn.write(&array, strip, NEW + strip as u8);
            assert_eq!(written, Some(Ok(())), "{level}, {strip}");
        }
        assert_eq!(torn.resync(&array), Ok(()), "{level}");
        assert!(!array.assembled().needs_resync(), "{level}");
        assert_eq!(torn.row(&array), row(strips, strips, strips), "{level}");
    }
}

/// A block that is lost keeps its own row from being made equal, and no other one.
#[test]
fn a_resync_makes_the_rows_beside_a_lost_one_equal() {
    let torn = Torn::new(Level::Raid5, 4, 0..0, false);
    let array = torn.assemble(&torn.machine.all());
    let (data, parity) = (torn.role_of(0), torn.role_of(3));
    let before = torn.machine.media[parity].borrow().clone();
    torn.write_rows(&array, 0, 9, NEW).unwrap().unwrap();
    drop(array);
    // The crash came amid the last block, before the parity changed.
    let at = torn.geometry().row_lba(0, 0).0;
    torn.machine.media[parity]
        .borrow_mut()
        .put_back(at..at + 9, &before);
    torn.machine.media[data].borrow_mut().tear(at + 8);
    let array = torn.assemble(&torn.machine.all());
    assert_eq!(torn.resync(&array), Err(SweepError::Lost { stripe: 0 }));
    drop(array);
    let array = torn.assemble_without(torn.role_of(2));
    assert_eq!(torn.row(&array), row(3, 1, 1));
}

/// A mirror of two legs of which a crash has left the second without what was last written to nine rows, and
/// where these begin on each leg.
fn unequal_legs() -> (Torn, u64) {
    let torn = Torn::new(Level::Mirrored, 2, 0..0, false);
    let array = torn.assemble(&torn.machine.all());
    let before = torn.machine.media[1].borrow().clone();
    torn.write_rows(&array, 0, 9, NEW).unwrap().unwrap();
    drop(array);
    let at = torn.geometry().row_lba(0, 0).0;
    torn.machine.media[1]
        .borrow_mut()
        .put_back(at..at + 9, &before);
    (torn, at)
}

/// Legs that a crash left unequal, the first with a block that cannot be read: each other row is what the first
/// leg holds, whether it is read alone or beside that block, and after a resync.
#[test]
fn rows_beside_one_that_cannot_be_read_are_not_read_of_another_leg() {
    for resyncs in [false, true] {
        let (torn, at) = unequal_legs();
        torn.machine.media[0].borrow_mut().tear(at + 8);
        let array = torn.assemble(&torn.machine.all());
        assert_eq!(torn.read(&array, 0), Ok(NEW));
        if resyncs {
            assert_eq!(torn.resync(&array), Ok(()));
            drop(array);
            let array = torn.assemble_without(0);
            assert_eq!(torn.read(&array, 0), Ok(NEW));
            continue;
        }
        let (reading, pool, at) = (array.clone(), torn.bench.pool.clone(), torn.lba(0, 0));
        let read = torn.bench.run(async move {
            let into = pool.allocate(9 * 512).await;
            reading.read(at, std::slice::from_ref(&into)).await?;
            let bytes = into.bytes();
            Ok::<_, DiskError>([bytes[0], bytes[7 * 512]])
        });
        assert_eq!(read, Some(Ok([NEW; 2])));
    }
}

/// The same of mirrors: a block that is lost on both legs keeps no other row from being made equal.
#[test]
fn a_resync_makes_the_rows_of_legs_beside_a_lost_one_equal() {
    let (torn, at) = unequal_legs();
    for medium in &torn.machine.media {
        medium.borrow_mut().tear(at + 8);
    }
    let array = torn.assemble(&torn.machine.all());
    assert_eq!(torn.resync(&array), Err(SweepError::Lost { stripe: 0 }));
    assert_eq!(torn.read(&array, 0), Ok(NEW));
    drop(array);
    let array = torn.assemble_without(0);
    assert_eq!(torn.read(&array, 0), Ok(NEW));
}

/// Reads that fail once cost a row nothing: it is written with its parity.
#[test]
fn a_row_that_cannot_be_read_once_keeps_its_parity() {
    for (level, roles, _) in levels() {
        let torn = Torn::new(level, roles, 0..0, false);
        let strips = torn.geometry().data();
        let array = torn.assemble(&torn.machine.all());
        assert!(array.assembled().needs_resync());
        let at = torn.geometry().row_lba(0, 0).0;
        for medium in &torn.machine.media {
            medium.borrow_mut().bad_once.insert(at);
        }
        torn.write(&array, strips - 1, NEW).unwrap().unwrap();
        drop(array);
        let array = torn.assemble_without(torn.role_of(strips - 1));
        assert_eq!(torn.read(&array, strips - 1), Ok(NEW), "{level}");
    }
}

/// A member that refuses to make a block unreadable is none the worse for it.
#[test]
fn a_member_that_refuses_to_make_a_block_unreadable_stays() {
    for why in [
        DiskError::Internal(0),
        DiskError::NoSpace,
        DiskError::Unsupported,
    ] {
        let torn = Torn::new(Level::Raid5, 4, 0..2, false);
        let parity = torn.role_of(3);
        torn.machine.media[parity].borrow_mut().refuses_to_spoil = Some(why);
        let array = torn.assemble(&torn.machine.all());
        let written = torn.write(&array, 0, NEW);
        assert_eq!(written, Some(Err(DiskError::UnrecoveredRead)), "{why}");
        assert!(array.assembled().state().is_whole(), "{why}");
        assert_eq!(torn.row(&array), row(3, 0, 2), "{why}");
    }
}

/// Writes that were tried as a whole before they were done row by row keep no mark.
#[test]
fn the_mark_of_torn_rows_goes_once_they_are_written() {
    let torn = Torn::new(Level::Raid5, 4, 0..2, false);
    let array = torn.assemble(&torn.machine.all());
    for strip in 0..2 {
        let written = torn.write_rows(&array, strip, 2, NEW + strip as u8);
        assert_eq!(written, Some(Ok(())), "strip {strip}");
    }
    assert_eq!(torn.resync(&array), Ok(()));
    drop(array);
    let array = torn.assemble(&torn.machine.all());
    assert!(!array.assembled().needs_resync());
    assert_eq!(torn.row(&array), row(3, 2, 2));
}
