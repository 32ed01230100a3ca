//! Random lives of arrays, held against the model: members fail, also amid a rebuild and in the same
//! crash as the power; they are replaced, or come back; blocks become unreadable.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
};

use corebay_core::{rng::Rng, units::BlockSize};
use corebay_raid::{
    array::Array,
    geometry::{Consistency, Level, Wish},
    state::RoleState,
    sweep::{Pace, SweepError},
};

use crate::support::{
    bench::{Bench, Machine, Model, Worker, settle, small},
    ec,
    power::{Power, PowerDisk},
};

const BLOCKS: u64 = 150;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A machine amid its life.
struct Life {
    machine: Machine,
    model: Rc<RefCell<Model>>,
    bench: Bench,
    array: Rc<Array<PowerDisk>>,
    rng: Rng,
    /// How many members the level may lose.
    bears: usize,
    /// What happened, for whoever looks at a failure.
    story: Vec<String>,
}

impl Life {
    fn new(wish: Wish, bears: usize, seed: u64) -> Self {
        let power = Power::new(seed, false);
        let mut rng = Rng::from_seed(seed);
        let machine = Machine::new(wish, rng.below(2) == 0, &power);
        let bench = Bench::new(&power);
        let (array, _) = machine.assemble(&bench, &machine.all()).unwrap().unwrap();
        Self {
            machine,
            model: Rc::new(RefCell::new(Model::new(BLOCKS))),
            bench,
            array,
            rng,
            bears,
            story: Vec::new(),
        }
    }

    fn tell(&mut self, what: String) {
        self.story.push(what);
    }

    fn states(&self) -> Vec<RoleState> {
        let state = self.array.assembled().state();
        state.roles.iter().map(|role| role.state).collect()
    }

    fn roles(&self, is: impl Fn(&RoleState) -> bool) -> Vec<usize> {
        let states = self.states();
        let roles = 0..states.len();
        roles.filter(|&role| is(&states[role])).collect()
    }

    /// Members that may be lost still, those that fail without anybody having noticed counted.
    fn may_lose(&self) -> usize {
        let states = self.states();
        let whole = |role: usize| {
            states[role] == RoleState::Active && !self.machine.media[role].borrow().gone
        };
        let lost = (0..states.len()).filter(|&role| !whole(role)).count();
        self.bears.saturating_sub(lost)
    }

    fn pick(&mut self, from: &[usize]) -> Option<usize> {
        let at = self.rng.below(from.len().max(1) as u64) as usize;
        from.get(at).copied()
    }

    /// Starts work on half of the blocks each; how many have not ended.
    fn start_work(&mut self, operations: usize) -> Rc<Cell<usize>> {
        let left = Rc::new(Cell::new(2));
        for half in 0..2 {
            let worker = Worker {
                array: self.array.clone(),
                model: self.model.clone(),
                pool: self.bench.pool.clone(),
                rng: Rng::from_seed(self.rng.next_u64()),
                first: half * BLOCKS / 2,
                blocks: BLOCKS / 2,
                longest: 40,
            };
            let left = left.clone();
            let task: Task = Box::pin(async move {
                worker.run(operations).await;
                left.set(left.get() - 1);
            });
            assert!(self.bench.reactor.spawn(task).is_ok());
        }
        left
    }

    /// Turns until work and a sweep have ended; false where the power failed before.
    fn finish(&self, left: &Rc<Cell<usize>>) -> bool {
        let left = left.clone();
        let ended = self.bench.run(std::future::poll_fn(move |context| {
            context.waker().wake_by_ref();
            match left.get() {
                0 => std::task::Poll::Ready(()),
                _ => std::task::Poll::Pending,
            }
        }));
        ended.is_some()
    }

    fn fail_one(&mut self) {
        let candidates = self.roles(|state| *state == RoleState::Active);
        if self.may_lose() > 0
            && let Some(victim) = self.pick(&candidates)
        {
            self.tell(format!("{victim} fails"));
            self.machine.media[victim].borrow_mut().gone = true;
        }
    }

    /// Gives a failed role to a new member, or takes its own back.
    fn restore_one(&mut self) {
        let failed = self.roles(|state| *state == RoleState::Failed);
        let Some(role) = self.pick(&failed) else {
            return;
        };
        let returns = self.rng.below(2) == 0;
        self.tell(format!(
            "{role} {}",
            if returns { "returns" } else { "is replaced" }
        ));
        if returns {
            self.machine.media[role].borrow_mut().gone = false;
        } else {
            self.machine.media[role].borrow_mut().wipe();
        }
        self.array.set_member(role, Some(self.machine.disk(role)));
        let (array, pool) = (self.array.clone(), self.bench.pool.clone());
        let mut rng = Rng::from_seed(self.rng.next_u64());
        let restored = self.bench.run(async move {
            match returns {
                true => array.take_back(role).await,
                false => array.replace(role, &mut rng, &pool).await.map(|_| ()),
            }
        });
        restored.expect("power").expect("it is accepted");
    }

    /// Rebuilds what is to be rebuilt while hosts work; maybe another member fails, or the power.
    fn rebuild(&mut self) {
        let rebuilding = self.roles(|state| matches!(state, RoleState::Rebuilding { .. }));
        let Some(role) = self.pick(&rebuilding) else {
            return;
        };
        let left = self.start_work(8);
        left.set(left.get() + 1);
        let (array, done) = (self.array.clone(), left.clone());
        let outcome = Rc::new(Cell::new(None));
        let into = outcome.clone();
        let sweep: Task = Box::pin(async move {
            into.set(Some(array.rebuild(role, Pace::default()).await));
            done.set(done.get() - 1);
        });
        assert!(self.bench.reactor.spawn(sweep).is_ok());
        self.tell(format!("{role} is rebuilt"));
        for _ in 0..self.rng.below(400) {
            let _ = self.bench.run(async {});
        }
        match self.rng.below(4) {
            0 => self.fail_one(),
            1 => {
                self.tell(format!("{role} fails amid it"));
                self.machine.media[role].borrow_mut().gone = true;
            }
            2 => return self.crash(&left),
            _ => {}
        }
        if !self.finish(&left) {
            return;
        }
        match outcome.get().expect("it has ended") {
            Ok(()) => {}
            // It failed itself.
            Err(SweepError::State(RoleState::Failed) | SweepError::Disk(_)) => {
                assert!(self.machine.media[role].borrow().gone, "{:?}", self.story);
            }
            Err(error) => panic!("{error}: {:?}", self.story),
        }
    }

    /// The power fails amid what goes on, and as many members with it as may.
    fn crash(&mut self, left: &Rc<Cell<usize>>) {
        let cut = self.rng.below(250);
        self.machine.power.cut_after(cut);
        let _ = self.finish(left);
        let mut lost = Vec::new();
        while self.may_lose() > lost.len() && self.rng.below(2) == 0 {
            let active = self.roles(|state| *state == RoleState::Active);
            let there =
                |role: &usize| !lost.contains(role) && !self.machine.media[*role].borrow().gone;
            let active: Vec<usize> = active.into_iter().filter(there).collect();
            lost.extend(self.pick(&active));
        }
        self.tell(format!(
            "the power fails after {cut} changes, and {lost:?} are lost"
        ));
        self.bench = Bench::new(&self.machine.power);
        self.machine.lose_power();
        let here = |role: &usize| !lost.contains(role) && !self.machine.media[*role].borrow().gone;
        let here: Vec<usize> = self.machine.all().into_iter().filter(here).collect();
        let assembled = self.machine.assemble(&self.bench, &here).unwrap();
        let (array, _) = assembled.unwrap_or_else(|error| panic!("{error}: {:?}", self.story));
        self.array = array;
        let (array, model) = (self.array.clone(), self.model.clone());
        self.bench
            .run(settle(array, model, self.bench.pool.clone(), false))
            .unwrap();
        let array = self.array.clone();
        let resynced = self
            .bench
            .run(async move { array.resync(Pace::default()).await });
        resynced.unwrap().unwrap();
    }

    /// Blocks of one member become unreadable; a scrub beside hosts makes them of the others.
    fn spoil(&mut self) {
        let whole = self.roles(|state| *state != RoleState::Active).is_empty();
        if !whole || self.may_lose() < self.bears {
            return;
        }
        let all = self.machine.all();
        if let Some(role) = self.pick(&all) {
            let at = self.machine.geometry.row_lba(self.rng.below(2), 0).0 + self.rng.below(20);
            self.tell(format!("{role} cannot read {at}"));
            self.machine.media[role]
                .borrow_mut()
                .bad
                .extend([at, at + 1]);
            let (left, array) = (self.start_work(4), self.array.clone());
            let scrubbed = self
                .bench
                .run(async move { array.scrub(Pace::default()).await });
            assert!(scrubbed.unwrap().unwrap().lost.is_empty());
            assert!(self.finish(&left));
            assert!(self.machine.media[role].borrow().bad.is_empty());
        }
    }

    fn step(&mut self) {
        match self.rng.below(8) {
            0 | 1 => self.fail_one(),
            2 | 3 => self.restore_one(),
            4 => self.spoil(),
            5 => {
                let left = self.start_work(6);
                self.crash(&left);
            }
            _ => self.rebuild(),
        }
        let left = self.start_work(4);
        assert!(self.finish(&left));
        assert!(!self.array.assembled().is_stopped(), "{:?}", self.story);
    }

    /// Everything is as the model says; and after all is mended, it agrees with itself.
    fn end(&mut self) {
        let read = settle(
            self.array.clone(),
            self.model.clone(),
            self.bench.pool.clone(),
            false,
        );
        self.bench.run(read).unwrap();
        for _ in 0..40 {
            self.restore_one();
            let rebuilding = self.roles(|state| matches!(state, RoleState::Rebuilding { .. }));
            let Some(role) = self.pick(&rebuilding) else {
                break;
            };
            if self.machine.media[role].borrow().gone {
                // Nobody has noticed yet.
                let left = self.start_work(4);
                assert!(self.finish(&left));
                continue;
            }
            let array = self.array.clone();
            let rebuilt = self
                .bench
                .run(async move { array.rebuild(role, Pace::default()).await });
            rebuilt
                .unwrap()
                .unwrap_or_else(|error| panic!("{error}: {:?}", self.story));
        }
        let array = self.array.clone();
        let scrubbed = self
            .bench
            .run(async move { array.scrub(Pace::default()).await });
        let found = scrubbed.unwrap().unwrap();
        assert_eq!(
            (found.mismatch_count, found.lost),
            (0, vec![]),
            "{:?}",
            self.story
        );
    }
}

fn lives(wish: Wish, bears: usize, name: u64) {
    let from_environment = |name: &str| -> Option<u64> {
        let text = std::env::var(name).ok()?;
        Some(text.parse().expect("a number"))
    };
    let first = from_environment("COREBAY_SEED").unwrap_or(name);
    for seed in first..first + from_environment("COREBAY_LIVES").unwrap_or(4) {
        let told = RefCell::new(String::new());
        let run = || {
            let mut life = Life::new(wish, bears, seed);
            for _ in 0..10 {
                life.step();
                *told.borrow_mut() = life.story.join("; ");
            }
            life.end();
        };
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            eprintln!("COREBAY_SEED={seed} {}: {}", wish.level, told.borrow());
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn raid5() {
    lives(small(Level::Raid5, 4, BlockSize::B512), 1, 100);
}

#[test]
fn raid6() {
    lives(small(Level::Raid6, 5, BlockSize::B512), 2, 200);
}

#[test]
fn raid6_of_large_blocks() {
    lives(small(Level::Raid6, 6, BlockSize::B4096), 2, 300);
}

#[test]
fn three_ways() {
    lives(small(Level::Mirrored, 3, BlockSize::B512), 2, 400);
}

#[test]
fn reed_solomon() {
    lives(small(ec(3, 3), 6, BlockSize::B512), 3, 500);
}

#[test]
fn raid6_with_dirty_regions() {
    // Without a journal no member may be lost in the same crash.
    let wish = Wish {
        consistency: Consistency::DirtyRegions,
        ..small(Level::Raid6, 5, BlockSize::B512)
    };
    lives(wish, 0, 600);
}
