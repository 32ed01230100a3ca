//! Arrays whose shape changes: larger members, legs that come and go, stale members taken by force.

use std::{cell::RefCell, rc::Rc};

use corebay_core::{arena::Arena, buffer::BufferPool, disk::Disk, rng::Rng, units::BlockSize};
use corebay_raid::{
    array::{Array, Assembled},
    assemble::{AssembleError, assemble_with_stale, examine},
    geometry::{Consistency, Level, Wish},
    reshape::{Change, ReshapeError},
    state::RoleState,
    sweep::{Pace, SweepError},
};

use crate::support::{
    bench::{Bench, Machine, Model, Worker, settle, small},
    power::{Medium, Power, PowerDisk},
};

const BLOCKS: u64 = 96;

type Shared = Rc<Array<PowerDisk>>;

struct Rig {
    machine: Machine,
    model: Rc<RefCell<Model>>,
    bench: Bench,
}

impl Rig {
    fn new(wish: Wish) -> Self {
        let power = Power::new(5, false);
        Self {
            machine: Machine::new(wish, true, &power),
            model: Rc::new(RefCell::new(Model::new(BLOCKS))),
            bench: Bench::new(&power),
        }
    }

    fn all(&self) -> Shared {
        let assembled = self.machine.assemble(&self.bench, &self.machine.all());
        assembled.unwrap().unwrap().0
    }

    fn work(&self, array: &Shared, operations: usize) {
        let worker = Worker {
            array: array.clone(),
            model: self.model.clone(),
            pool: self.bench.pool.clone(),
            rng: Rng::from_seed(operations as u64),
            first: 0,
            blocks: BLOCKS,
            longest: 70,
        };
        self.bench.run(worker.run(operations)).unwrap();
    }

    fn verify(&self, array: &Shared) {
        let (model, pool) = (self.model.clone(), self.bench.pool.clone());
        let read = settle(array.clone(), model, pool, false);
        self.bench.run(read).unwrap();
    }

    /// Changes the shape; nothing where the power fails meanwhile.
    fn reshape(&self, array: &Shared, change: Change) -> Option<Result<(), ReshapeError>> {
        let array = array.clone();
        self.bench.run(async move {
            if change == Change::Grow {
                array.prepare_growth().await?;
            }
            array.reshape(change, &mut Rng::from_seed(9)).await
        })
    }

    fn rebuild(&self, array: &Shared, role: usize) -> Result<(), SweepError> {
        let array = array.clone();
        let rebuild = async move { array.rebuild(role, Pace::default()).await };
        self.bench.run(rebuild).unwrap()
    }

    fn mismatches(&self, array: &Shared) -> u64 {
        let array = array.clone();
        let scrub = async move { array.scrub(Pace::default()).await };
        self.bench.run(scrub).unwrap().unwrap().mismatch_count
    }

    fn add_medium(&mut self) -> usize {
        let size = self.machine.geometry.block_size();
        let medium = Medium::new(size, 8 << 20, true);
        self.machine.media.push(Rc::new(RefCell::new(medium)));
        self.machine.media.len() - 1
    }
}

fn levels() -> Vec<Wish> {
    let marked = Wish {
        consistency: Consistency::DirtyRegions,
        ..small(Level::Raid6, 5, BlockSize::B4096)
    };
    vec![
        small(Level::Raid5, 4, BlockSize::B512),
        small(Level::Mirrored, 2, BlockSize::B512),
        small(Level::Striped, 3, BlockSize::B512),
        marked,
    ]
}

#[test]
fn an_array_grows_with_its_members() {
    for wish in levels() {
        let rig = Rig::new(wish);
        let array = rig.all();
        rig.work(&array, 20);
        let before = array.info().blocks;
        let refused = rig.reshape(&array, Change::Grow).unwrap();
        assert_eq!(refused, Err(ReshapeError::NoRoom { bytes: 4 << 20 }));
        for medium in &rig.machine.media {
            medium.borrow_mut().enlarge(8 << 20);
        }
        // What lay behind the end is not seen.
        let last = rig.machine.media[0].borrow().last_block();
        rig.machine.media[0].borrow_mut().scribble(last);
        assert_eq!(rig.reshape(&array, Change::Grow), Some(Ok(())));
        // One that is about to be closed grows no more.
        array.assembled().halt_sweeps();
        let halted = rig.reshape(&array, Change::Grow);
        assert_eq!(halted, Some(Err(ReshapeError::Halted)));
        drop(array);
        let array = rig.all();
        assert!(array.info().blocks > before + before / 2);
        rig.verify(&array);
        assert_eq!(rig.mismatches(&array), 0);
        rig.work(&array, 20);
        rig.verify(&array);
    }
}

#[test]
fn growth_survives_a_power_cut() {
    for wish in levels() {
        let mut rig = Rig::new(wish);
        let array = rig.all();
        rig.work(&array, 10);
        drop(array);
        let array = rig.all();
        let resyncing = array.clone();
        let resynced = rig
            .bench
            .run(async move { resyncing.resync(Pace::default()).await });
        resynced.unwrap().unwrap();
        drop(array);
        for medium in &rig.machine.media {
            medium.borrow_mut().enlarge(8 << 20);
        }
        let power = Power::new(1, false);

        let (whole, model) = (rig.machine.fork(&power), rig.model.borrow().clone());
        let mut cut = 0;
        loop {
            rig.model = Rc::new(RefCell::new(model.clone()));
            let power = Power::new(cut, false);
            rig.machine = whole.fork(&power);
            rig.bench = Bench::new(&power);
            let array = rig.all();
            power.cut_after(cut);
            let changing = array.clone();
            let ended = rig.bench.run(async move {
                let mut rng = Rng::from_seed(9);
                changing.reshape(Change::Grow, &mut rng).await
            });
            drop(array);
            rig.bench = Bench::new(&power);
            rig.machine.lose_power();
            let array = rig.all();
            rig.verify(&array);
            if let Some(ended) = ended {
                assert_eq!(ended, Ok(()));
                break;
            }
            // Every place in the shortest, some in the others.
            cut += if wish.roles == 2 { 3 } else { 23 };
        }
        assert!(cut > 16, "{cut} changes");
    }
}

#[test]
fn legs_come_and_go() {
    let mut rig = Rig::new(small(Level::Mirrored, 1, BlockSize::B512));
    let array = rig.all();
    rig.work(&array, 10);
    drop(array);
    for legs in 1..4 {
        let array = rig.all();
        assert_eq!(rig.reshape(&array, Change::AddLeg), Some(Ok(())));
        drop(array);
        let array = rig.all();
        assert_eq!(array.assembled().geometry().roles(), legs + 1);
        assert_eq!(
            array.assembled().state().roles[legs].state,
            RoleState::Failed
        );
        let new = rig.add_medium();
        array.set_member(legs, Some(rig.machine.disk(new)));
        let (replacing, pool) = (array.clone(), rig.bench.pool.clone());
        let mut rng = Rng::from_seed(100 + legs as u64);
        let replace = async move { replacing.replace(legs, &mut rng, &pool).await };
        rig.bench.run(replace).unwrap().unwrap();
        rig.rebuild(&array, legs).unwrap();
        assert_eq!(rig.mismatches(&array), 0);
        rig.work(&array, 10 + legs);
        rig.verify(&array);
    }
    let array = rig.all();
    let refused = rig.reshape(&array, Change::AddLeg).unwrap();
    assert!(matches!(refused, Err(ReshapeError::Geometry(_))));
    drop(array);
    for _ in 0..3 {
        let array = rig.all();
        assert_eq!(
            rig.reshape(&array, Change::RemoveLeg { role: 0 }),
            Some(Ok(()))
        );
        drop(array);
        rig.machine.media.remove(0);
        let array = rig.all();
        assert!(array.assembled().state().is_whole());
        rig.verify(&array);
        rig.work(&array, 5);
    }
    let array = rig.all();
    let refused = rig.reshape(&array, Change::RemoveLeg { role: 0 });
    assert_eq!(refused, Some(Err(ReshapeError::LastLeg)));
    let raid5 = Rig::new(small(Level::Raid5, 4, BlockSize::B512));
    let refused = raid5.reshape(&raid5.all(), Change::AddLeg);
    assert_eq!(refused, Some(Err(ReshapeError::NoMirror)));
}

impl Rig {
    /// A mirror gets a leg more, on a disk of its own.
    fn add_leg(&mut self, seed: u64) {
        let array = self.all();
        assert_eq!(self.reshape(&array, Change::AddLeg), Some(Ok(())));
        drop(array);
        let array = self.all();
        let (role, new) = (array.assembled().geometry().roles() - 1, self.add_medium());
        array.set_member(role, Some(self.machine.disk(new)));
        let (replacing, pool) = (array.clone(), self.bench.pool.clone());
        let mut rng = Rng::from_seed(seed);
        let replace = async move { replacing.replace(role, &mut rng, &pool).await };
        self.bench.run(replace).unwrap().unwrap();
        self.rebuild(&array, role).unwrap();
    }
}

/// Legs that have come know what is marked, also where nothing was written since: nothing.
#[test]
fn new_legs_alone_need_no_resync() {
    let mut rig = Rig::new(small(Level::Mirrored, 2, BlockSize::B512));
    let array = rig.all();
    rig.work(&array, 10);
    let tidying = array.clone();
    let tidied = rig.bench.run(async move { tidying.tidy().await });
    assert!(tidied.unwrap().unwrap() > 0);
    drop(array);
    for seed in 0..2 {
        rig.add_leg(seed);
        let array = rig.all();
        let removed = rig.reshape(&array, Change::RemoveLeg { role: 0 });
        assert_eq!(removed, Some(Ok(())));
        drop(array);
        rig.machine.media.remove(0);
    }
    let array = rig.all();
    assert!(!array.assembled().needs_resync());
    rig.verify(&array);
}

#[test]
fn a_halted_rebuild_goes_on_where_it_was() {
    let rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512));
    let array = rig.all();
    rig.work(&array, 10);
    rig.machine.media[1].borrow_mut().wipe();
    let (failing, pool) = (array.clone(), rig.bench.pool.clone());
    array.set_member(1, Some(rig.machine.disk(1)));
    let replaced = rig.bench.run(async move {
        failing.give_up(1).await?;
        failing.replace(1, &mut Rng::from_seed(5), &pool).await
    });
    replaced.unwrap().unwrap();
    let halting = array.assembled().clone();
    let halt: std::pin::Pin<Box<dyn Future<Output = ()>>> =
        Box::pin(std::future::poll_fn(move |context| {
            if halting.progress().0 > 0 {
                halting.halt_sweeps();
                return std::task::Poll::Ready(());
            }
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        }));
    assert!(rig.bench.reactor.spawn(halt).is_ok());
    assert_eq!(rig.rebuild(&array, 1), Err(SweepError::Halted));
    drop(array);
    let array = rig.all();
    let state = array.assembled().state().roles[1].state;
    let RoleState::Rebuilding { stripes, .. } = state else {
        panic!("{state:?}");
    };
    assert!(stripes > 0 && stripes < array.assembled().geometry().stripes());
    rig.rebuild(&array, 1).unwrap();
    rig.verify(&array);
    assert_eq!(rig.mismatches(&array), 0);
}

#[test]
fn stale_members_are_taken_only_by_force() {
    let rig = Rig::new(small(Level::Raid5, 4, BlockSize::B512));
    let array = rig.all();
    rig.work(&array, 10);
    let giving_up = array.clone();
    rig.bench
        .run(async move { giving_up.give_up(2).await })
        .unwrap()
        .unwrap();
    drop(array);
    // Another one is lost: only with the stale one are there enough.
    let there = [0, 2, 3];
    let refused = rig.machine.assemble(&rig.bench, &there).unwrap();
    assert!(matches!(refused, Err(AssembleError::TooFew { .. })));
    let bytes = Assembled::scratch_bytes(&rig.machine.geometry);
    let mut arena = Arena::lazy(bytes).unwrap();
    let pool = BufferPool::new(arena.take(bytes).unwrap(), 64);
    let (disks, reactor) = (rig.machine.disks(&there), rig.bench.reactor.clone());
    let (known, disk) = (array_uuid(&rig), rig.machine.disk(2));
    let forced = rig.bench.run(async move {
        let said = examine(&disk, &pool).await.unwrap();
        assert_eq!(said.array, known);
        assemble_with_stale(disks, None, &reactor, &pool).await
    });
    let assembly = forced.unwrap().unwrap();
    assert_eq!(assembly.report.roles[2], Some(1));
    // Nothing was written without it, so nothing is lost.
    rig.verify(&Rc::new(assembly.array));
}

fn array_uuid(rig: &Rig) -> corebay_raid::state::Uuid {
    let (disk, pool) = (rig.machine.disk(0), rig.bench.pool.clone());
    let said = rig.bench.run(async move { examine(&disk, &pool).await });
    said.unwrap().unwrap().array
}
