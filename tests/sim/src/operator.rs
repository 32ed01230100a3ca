//! Whoever runs an appliance and its pools: takes snapshots while hosts work, makes clones of them and
//! writes these, rolls the volume back, deletes, resizes, and looks whether all are what they have to be.
//!
//! Invariants:
//! - A snapshot holds what its volume held at one moment while it was taken, for good: whatever happens
//!   to the volume, and whatever ends the appliance, from when it was answered on.
//! - What an order that the end of a process interrupted has done is unknown, and looked at in the next
//!   life. No other order is lost.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use corebay_core::{
    disk::{Disk, DiskError, Durability},
    rng::Rng,
    units::Lba,
};
use corebay_lvol::{Identity, Pool, Volume, VolumeId, error::PoolError};
use corebay_target::core::Core;

use crate::{
    client::Common,
    content::{self, LOST},
    family::{Received, Receiving},
    machine::Findings,
    model::{OPERATOR, Ticket, WriteEnd},
    node::{SimEnvironment, subsystem, tell},
    pool::{PoolStore, VOLUME, uuid},
    store::Base,
    trace::event,
};

/// The most snapshots and clones of a volume at a time.
pub const KEPT_MAX: usize = 5;

/// What blocks of a clone are filled with is of no namespace.
const CLONE_NSID: u32 = 1000;

/// How often it is looked whether the world goes on.
const LOOK: Duration = Duration::from_millis(20);

/// What a snapshot or clone has to hold.
pub struct Kept {
    name: String,
    /// It is a snapshot.
    pub snapshot: bool,
    /// Nobody knows whether it is there, or not any more.
    pub uncertain: bool,
    /// By block; none while nobody has looked.
    pub content: Option<Vec<u64>>,
    /// The namespace that its blocks are of, but for what was written to a clone.
    pub nsid: u32,
    /// It is being received.
    pub receiving: Option<Receiving>,
    /// What it was received as.
    pub received: Option<Received>,
    /// By block, of one that nobody has looked at: what it may hold.
    permitted: Vec<Vec<u64>>,
    /// A block of a clone that may have this value instead.
    under_way: Option<(usize, u64)>,
}

impl Kept {
    /// By block: what it may hold now.
    #[must_use]
    pub fn permitted(&self) -> Vec<Vec<u64>> {
        match &self.content {
            Some(content) => content.iter().map(|value| vec![*value]).collect(),
            None => self.permitted.clone(),
        }
    }

    /// It is a clone of what nobody has looked at.
    pub fn permit(&mut self, values: Vec<Vec<u64>>) {
        self.permitted = values;
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What is known of a pool beside its volume, over all lives of its appliance.
#[derive(Default)]
pub struct Ledger {
    kept: Vec<Kept>,
    made: u64,
}

/// A pool's ledger.
pub type SharedLedger = Rc<RefCell<Ledger>>;

/// What an operator is to run.
pub struct Assignment {
    /// The world.
    pub common: Rc<Common>,
    /// Which appliance.
    pub node: usize,
    /// The namespace that the pool's volume is.
    pub nsid: u32,
    /// Which of the appliance's floors the pool is.
    pub floor: usize,
    /// The longest pause between two orders, in microseconds.
    pub pause_micros_max: u64,
    /// Clones that share with the volume alone are made, and written where hosts work.
    pub twins: bool,
    /// Blocks may be lost with the power.
    pub tears: bool,
    /// What is known of the pool.
    pub ledger: SharedLedger,
}

/// See the module.
pub struct Operator {
    core: Rc<Core<SimEnvironment>>,
    /// What it runs.
    pub task: Assignment,
    /// The pool.
    pub pool: Pool<Base>,
    store: Arc<PoolStore>,
    findings: Findings,
    /// The pool is about to be closed.
    leaving: Rc<Cell<bool>>,
    /// Operators at work.
    working: Rc<Cell<usize>>,
}

/// Why an order came to nothing.
pub enum Failure {
    /// It may.
    Refused,
    /// It must not.
    Wrong(String),
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            // Those that are being deleted still take space, and who looks at one has it open.
            PoolError::NoSpace | PoolError::Busy | PoolError::TooMany => Self::Refused,
            other => Self::Wrong(other.to_string()),
        }
    }
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::NoSpace => Self::Refused,
            other => Self::Wrong(other.to_string()),
        }
    }
}

impl Operator {
    /// Begins to work on the home core of its pool, until `leaving`.
    pub fn start(
        core: &Rc<Core<SimEnvironment>>,
        (task, pool, store): (Assignment, Pool<Base>, Arc<PoolStore>),
        findings: &Findings,
        (leaving, working): (&Rc<Cell<bool>>, &Rc<Cell<usize>>),
        seed: u64,
    ) {
        let mut operator = Self {
            core: core.clone(),
            task,
            pool,
            store,
            findings: findings.clone(),
            leaving: leaving.clone(),
            working: working.clone(),
        };
        working.set(working.get() + 1);
        core.spawn_control(async move { operator.run(Rng::from_seed(seed)).await });
    }

    async fn run(&mut self, mut rng: Rng) {
        self.model().borrow_mut().fence(OPERATOR);
        let wants_streams = rng.once_in(3);
        let begun = self.take_stock().await;
        self.tell("looks at what there is", begun);
        while !self.leaving.get() {
            let pause = match self.task.common.finishing.get() {
                true => LOOK,
                false => Duration::from_micros(rng.below(self.task.pause_micros_max + 1)),
            };
            self.core.reactor.sleep(pause.min(LOOK)).await;
            if !self.leaving.get() && !self.task.common.finishing.get() {
                let drawn = match (self.task.twins, wants_streams) {
                    (true, _) if !rng.once_in(4) => 18,
                    (false, true) if rng.once_in(2) => 14 + rng.below(2),
                    _ => rng.below(18),
                };
                self.order(drawn, &mut rng).await;
            }
        }
        self.working.set(self.working.get() - 1);
    }

    fn model(&self) -> &RefCell<crate::model::Model> {
        &self.task.common.models[self.task.node][self.task.nsid as usize - 1]
    }

    fn tell(&self, what: &str, outcome: Result<(), Failure>) {
        let (node, floor) = (self.task.node, self.task.floor);
        let words = [event::ADMIN, floor as u64, u64::from(outcome.is_ok())];
        let ended = match &outcome {
            Ok(()) => "done",
            Err(Failure::Refused) => "refused",
            Err(Failure::Wrong(wrong)) => wrong,
        };
        self.task.common.trace.note(words, || {
            format!("appliance {node}, the operator of floor {floor} {what}: {ended}")
        });
        if let Err(Failure::Wrong(wrong)) = outcome
            && !self.is_cut_off()
        {
            self.findings
                .report(format!("the operator of floor {floor} {what}: {wrong}"));
        }
    }

    async fn order(&mut self, drawn: u64, rng: &mut Rng) {
        let kept = self.kept();
        let chosen = rng.below(kept.max(1) as u64) as usize;
        let (what, outcome) = match drawn {
            0..=3 if kept < KEPT_MAX => ("takes a snapshot", self.snapshot(rng).await),
            4 | 5 if kept > 0 && kept < KEPT_MAX => {
                ("makes a clone", self.make_clone(chosen, rng).await)
            }
            6 | 7 if kept > 0 => ("writes a clone", self.write_clone(chosen, rng).await),
            8 if kept > 0 => ("rolls back", self.roll_back(chosen).await),
            9 if kept > 0 => ("deletes", self.delete(chosen).await),
            10 | 11 => ("resizes the volume", self.resize(rng).await),
            12 if kept > 0 => ("inflates", self.inflate(chosen).await),
            13 if kept > 0 => ("promotes", self.promote(chosen).await),
            14 if kept > 0 => ("sends", self.send(rng).await),
            15 => ("receives", self.receive(rng).await),
            16 => (
                "makes a checkpoint",
                self.pool.checkpoint().await.map_err(Failure::from),
            ),
            18 if kept + 2 <= KEPT_MAX => ("makes a twin", self.make_twin(rng).await),
            18 => ("deletes", self.delete(chosen).await),
            _ if kept > 0 => ("looks", self.look(chosen).await),
            _ => return,
        };
        self.tell(what, outcome);
    }

    /// Its drive was pulled out: nothing that fails is anybody's fault, and what was ordered last may
    /// have been done.
    pub fn is_cut_off(&self) -> bool {
        self.store.base.has_failed_drive()
    }

    /// Who the next one is.
    pub fn identity(&self, rng: &mut Rng) -> Identity {
        let mut ledger = self.task.ledger.borrow_mut();
        ledger.made += 1;
        Identity {
            name: format!("kept{}", ledger.made),
            uuid: uuid(rng),
        }
    }

    /// Whatever comes of it: from now on it may be there.
    pub fn expect(&self, identity: &Identity, snapshot: bool, content: Option<Vec<u64>>) {
        self.task.ledger.borrow_mut().kept.push(Kept {
            name: identity.name.clone(),
            snapshot,
            uncertain: true,
            content,
            nsid: self.task.nsid,
            receiving: None,
            received: None,
            permitted: Vec::new(),
            under_way: None,
        });
    }

    /// Changes what is known of one, or looks at it.
    pub fn with<T>(&self, name: &str, change: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        let mut ledger = self.task.ledger.borrow_mut();
        ledger
            .kept
            .iter_mut()
            .find(|kept| kept.name == name)
            .map(change)
    }

    /// Changes what is known of all.
    pub fn with_all(&self, change: impl FnMut(&mut Kept)) {
        let mut ledger = self.task.ledger.borrow_mut();
        ledger.kept.iter_mut().for_each(change);
    }

    /// An order that made something has failed.
    pub fn forget_failed(&self, name: &str) {
        if !self.is_cut_off() {
            self.forget(name);
        }
    }

    /// It is not there any more.
    pub fn forget(&self, name: &str) {
        let mut ledger = self.task.ledger.borrow_mut();
        ledger.kept.retain(|kept| kept.name != name);
    }

    /// How many snapshots and clones there are.
    pub fn kept(&self) -> usize {
        self.task.ledger.borrow().kept.len()
    }

    /// Which one has this name.
    pub fn place_of(&self, name: &str) -> Option<usize> {
        let ledger = self.task.ledger.borrow();
        ledger.kept.iter().position(|kept| kept.name == name)
    }

    /// A number that is another one in every life and for every operator.
    pub fn seed(&self) -> u64 {
        self.core.reactor.now().0
    }

    /// Lets some time pass.
    pub async fn pause(&self, pause: Duration) {
        self.core.reactor.sleep(pause).await;
    }

    /// The size of the pool's blocks.
    pub fn block_bytes(&self) -> usize {
        self.store.info().block_size.bytes()
    }

    /// The name of one of them.
    pub fn name_of(&self, chosen: usize) -> String {
        self.task.ledger.borrow().kept[chosen].name.clone()
    }

    /// The volume or snapshot of this name.
    pub fn find(&self, name: &str) -> Result<VolumeId, Failure> {
        let missing = || Failure::Wrong(format!("{name} is not there"));
        self.pool.find(name).ok_or_else(missing)
    }

    fn open(&self, name: &str) -> Result<Volume<Base>, Failure> {
        Ok(self.pool.open(self.find(name)?)?)
    }

    /// What the blocks of a volume or snapshot hold.
    pub async fn read(&self, name: &str) -> Result<Vec<u64>, Failure> {
        let volume = self.open(name)?;
        let (size, blocks) = (volume.info().block_size.bytes(), volume.info().blocks);
        let scratch = self.core.environment.opener.scratch[self.task.floor].clone();
        let pool = scratch.pool.expect("a pool has some");
        let mut step = ((16 << 10) / size) as u64;
        let nsid = self.with(name, |kept| kept.nsid).unwrap_or(self.task.nsid);
        let mut found = Vec::new();
        let mut at = 0;
        while at < blocks {
            let count = step.min(blocks - at);
            let buffer = pool.allocate(size * count as usize).await;
            match volume.read(Lba(at), std::slice::from_ref(&buffer)).await {
                // The power tore one of them: they are looked at one by one.
                Err(DiskError::UnrecoveredRead) if self.task.tears && count > 1 => {
                    step = 1;
                    continue;
                }
                Err(DiskError::UnrecoveredRead) if self.task.tears => {
                    found.push(LOST);
                    at += 1;
                    continue;
                }
                read => read?,
            }
            for block in buffer.bytes().chunks(size) {
                let of = |nsid| content::read(block, nsid);
                let mark = of(nsid).or_else(|wrong| of(CLONE_NSID).map_err(|_| wrong));
                let wrong =
                    |wrong| Failure::Wrong(format!("block {} of {name}: {wrong}", found.len()));
                let mark = mark.map_err(wrong)?;
                found.push(mark);
            }
            at += count;
        }
        Ok(found)
    }

    /// Takes a snapshot that nobody has looked at; its name.
    pub async fn take_unseen(&mut self, rng: &mut Rng) -> Result<String, Failure> {
        let source = self.find(VOLUME)?;
        let identity = self.identity(rng);
        let name = identity.name.clone();
        self.expect(&identity, true, None);
        let ticket = self.model().borrow_mut().begin(OPERATOR);
        let taken = self.pool.snapshot(&[(source, identity)]).await;
        let mut model = self.model().borrow_mut();
        let permitted = model.permitted(ticket, model.now());
        model.end(ticket);
        if let Err(error) = taken {
            self.forget_failed(&name);
            return Err(error.into());
        }
        self.with(&name, |kept| {
            kept.uncertain = false;
            kept.permitted = permitted;
        });
        Ok(name)
    }

    async fn snapshot(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let source = self.find(VOLUME)?;
        let blocks = self.pool.volume(source)?.blocks;
        let identity = self.identity(rng);
        let name = identity.name.clone();
        self.expect(&identity, true, None);
        let ticket = self.model().borrow_mut().begin(OPERATOR);
        let taken = self.pool.snapshot(&[(source, identity)]).await;
        let until = self.model().borrow().now();
        let outcome = match taken {
            Err(error) => {
                self.forget_failed(&name);
                Err(error.into())
            }
            Ok(_) => {
                // It was answered: whatever ends the process from here on, it is there.
                let permitted = self.model().borrow().permitted(ticket, until);
                self.with(&name, |kept| {
                    kept.uncertain = false;
                    kept.permitted = permitted;
                });
                self.read(&name).await.and_then(|values| {
                    if values.len() as u64 != blocks {
                        let held = values.len();
                        return Err(Failure::Wrong(format!(
                            "{name} has {held} blocks of {blocks}"
                        )));
                    }
                    let checked = self.model().borrow().check_snapshot(ticket, until, &values);
                    self.with(&name, |kept| kept.content = Some(values));
                    checked.map_err(Failure::Wrong)
                })
            }
        };
        self.model().borrow_mut().end(ticket);
        outcome
    }

    async fn make_clone(&mut self, chosen: usize, rng: &mut Rng) -> Result<(), Failure> {
        let of = self.name_of(chosen);
        let source = self.find(&of)?;
        let identity = self.identity(rng);
        let name = identity.name.clone();
        let of = self.with(&of, |kept| (kept.content.clone(), kept.nsid));
        let (content, nsid) = of.unwrap_or((None, self.task.nsid));
        self.expect(&identity, false, content);
        self.with(&name, |kept| kept.nsid = nsid);
        match self.pool.clone_volume(source, &identity).await {
            Ok(_) => {
                self.with(&name, |kept| kept.uncertain = false);
                self.compare(&name).await
            }
            Err(error) => {
                self.forget_failed(&name);
                Err(error.into())
            }
        }
    }

    async fn write_clone(&mut self, chosen: usize, rng: &mut Rng) -> Result<(), Failure> {
        let name = self.name_of(chosen);
        if self.with(&name, |kept| kept.snapshot || kept.content.is_none()) != Some(false) {
            return Ok(());
        }
        let at = rng.below(self.open(&name)?.info().blocks);
        self.write_block(&name, at).await
    }

    /// Writes a block of a clone.
    pub async fn write_block(&self, name: &str, at: u64) -> Result<(), Failure> {
        let volume = self.open(name)?;
        let size = volume.info().block_size.bytes();
        let mark = content::mark(self.task.common.new_value(), at);
        let scratch = self.core.environment.opener.scratch[self.task.floor].clone();
        let mut buffer = scratch.pool.expect("a pool has some").allocate(size).await;
        content::fill(&mut buffer.bytes_mut(), CLONE_NSID, mark);
        self.touch(name);
        let place = at as usize;
        self.with(name, |kept| {
            kept.under_way = Some((place, mark));
            if let Some(of) = kept.permitted.get_mut(place) {
                of.push(mark);
            }
        });
        let from = std::slice::from_ref(&buffer);
        let written = volume.write(Lba(at), from, Durability::Durable).await;
        if written.is_err() && self.is_cut_off() {
            return Ok(());
        }
        self.with(name, |kept| {
            kept.under_way = None;
            if written.is_err() {
                return;
            }
            if let Some(content) = &mut kept.content {
                content[place] = mark;
            }
            if let Some(of) = kept.permitted.get_mut(place) {
                *of = vec![mark];
            }
        });
        Ok(written?)
    }

    async fn roll_back(&mut self, chosen: usize) -> Result<(), Failure> {
        let name = self.name_of(chosen);
        let mine = |kept: &Kept| kept.snapshot && kept.nsid == self.task.nsid;
        let values = self.with(&name, |kept| kept.content.clone().filter(|_| mine(kept)));
        let Some(values) = values.flatten() else {
            return Ok(());
        };
        let (volume, to) = (self.find(VOLUME)?, self.find(&name)?);
        let ticket = self.model().borrow_mut().begin_rollback(&values);
        let outcome = self.pool.roll_back(volume, to).await;
        let end = self.end_of(&outcome, WriteEnd::Refused);
        self.end_sized(ticket, end)?;
        Ok(outcome?)
    }

    /// Gives the volume fewer or more blocks; not all that would be cut off may be in use where that is not
    /// wanted.
    async fn resize(&mut self, rng: &mut Rng) -> Result<(), Failure> {
        let volume = self.find(VOLUME)?;
        let (now, most) = (
            self.pool.volume(volume)?.blocks,
            self.model().borrow().blocks(),
        );
        let blocks = match now < most && rng.once_in(2) {
            true => most,
            false => 1 + rng.below(most),
        };
        let cut = !rng.once_in(4);
        let ticket = self.model().borrow_mut().begin_resize(blocks);
        let outcome = self.pool.resize(volume, blocks, cut).await;
        // It may have been cleared in part by then.
        let end = self.end_of(&outcome, WriteEnd::Failed);
        self.end_sized(ticket, end)?;
        match outcome {
            Err(PoolError::InUse) if !cut && blocks < now => Err(Failure::Refused),
            outcome => Ok(outcome?),
        }
    }

    fn end_of(&self, outcome: &Result<(), PoolError>, refused: WriteEnd) -> WriteEnd {
        match outcome {
            Ok(()) => WriteEnd::Done,
            Err(_) if self.is_cut_off() => WriteEnd::Lost,
            Err(_) => refused,
        }
    }

    /// An order has ended that may have given the volume another size: hosts are told.
    fn end_sized(&self, ticket: Ticket, end: WriteEnd) -> Result<(), Failure> {
        let volume = self.find(VOLUME)?;
        let blocks = self.pool.volume(volume)?.blocks;
        self.store.refresh(&self.pool, volume)?;
        let sized = self
            .model()
            .borrow_mut()
            .end_sized(ticket, end, Some(blocks));
        sized.map_err(|wrong| Failure::Wrong(format!("the volume has {wrong}")))?;
        let name = subsystem(self.task.node);
        if let Some(subsystem) = self.core.registry.find(&name) {
            tell(&self.core, &subsystem, self.task.nsid);
        }
        Ok(())
    }

    /// Deletes one.
    pub async fn delete(&mut self, chosen: usize) -> Result<(), Failure> {
        let name = self.name_of(chosen);
        let id = self.find(&name)?;
        self.with(&name, |kept| kept.uncertain = true);
        let outcome = self.pool.delete(id).await;
        match outcome {
            Ok(()) => self.forget(&name),
            Err(_) if self.is_cut_off() => {}
            Err(_) => drop(self.with(&name, |kept| kept.uncertain = false)),
        }
        Ok(outcome?)
    }

    async fn look(&mut self, chosen: usize) -> Result<(), Failure> {
        let name = self.name_of(chosen);
        self.compare(&name).await
    }

    /// Reads one and holds it against what it has to be.
    pub async fn compare(&self, name: &str) -> Result<(), Failure> {
        let found = self.read(name).await?;
        let wrong = self.with(name, |kept| {
            let under_way = kept.under_way.take();
            let never = |(value, of): (&u64, &Vec<u64>)| *value != LOST && !of.contains(value);
            if kept.content.is_none()
                && let Some(at) = found.iter().zip(&kept.permitted).position(never)
            {
                return Some(format!(
                    "block {at} of {name} is {:#x}, which it never was",
                    found[at]
                ));
            }
            let expected = kept.content.get_or_insert_with(|| found.clone());
            if let Some((at, mark)) = under_way
                && (found[at] == mark || found[at] == LOST)
            {
                // The power may have torn it.
                expected[at] = found[at];
            }
            if found.len() != expected.len() {
                let (found, expected) = (found.len(), expected.len());
                return Some(format!("{name} has {found} blocks of {expected}"));
            }
            let differs = |(mine, other): (&u64, &u64)| mine != other;
            let at = found.iter().zip(expected.iter()).position(differs)?;
            Some(format!(
                "block {at} of {name} is {:#x} and was {:#x}",
                found[at], expected[at]
            ))
        });
        match wrong.flatten() {
            Some(wrong) => Err(Failure::Wrong(wrong)),
            None => Ok(()),
        }
    }

    /// What a new life finds.
    async fn take_stock(&mut self) -> Result<(), Failure> {
        let blocks = self.pool.volume(self.find(VOLUME)?)?.blocks;
        let settled = self.model().borrow_mut().settle_size(blocks);
        settled.map_err(|wrong| Failure::Wrong(format!("the volume has {wrong}")))?;
        let names: Vec<(String, bool)> = {
            let ledger = self.task.ledger.borrow();
            let kept = ledger.kept.iter();
            kept.map(|kept| (kept.name.clone(), kept.uncertain))
                .collect()
        };
        for (name, uncertain) in names {
            let receiving = self.with(&name, |kept| kept.receiving.clone());
            if let Some(of) = receiving.flatten() {
                self.settle_receiving(&name, &of).await?;
                continue;
            }
            if self.with(&name, |_| ()).is_none() {
                // Given up with the volume that it was received with.
                continue;
            }
            if uncertain && self.pool.find(&name).is_none() {
                self.forget(&name);
                continue;
            }
            self.with(&name, |kept| kept.uncertain = false);
            self.compare(&name).await?;
        }
        Ok(())
    }
}
