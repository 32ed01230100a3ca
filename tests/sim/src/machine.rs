//! An appliance's machine: its media, its memory, and the lives that its target has on it.
//!
//! Invariant: at most one process at a time has a medium open. The kernel unlocks a killed process's
//! files only once it has carried out what was submitted, and until then the next one cannot start.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use corebay_core::{reactor::Reactor, rng::Rng, units::Time};
use corebay_nvme::{emulated::Emulated, pcie::PciDevice};
use corebay_target::memory::Memory;

use crate::{
    beneath::{FloorPlan, NamespacePlan},
    boot::{self, Boot, Found, Keeper},
    client::Common,
    disk::Queues,
    medium::{MediumFaults, SimMedium, Supply},
    model::OPERATOR,
    net::Hub,
    node::{Node, Surroundings, memory},
    operator::{Assignment, SharedLedger},
    plan::{NodePlan, pick},
    store::{Bays, Scratch, Store, scratch},
    trace::{Trace, event, lock},
};

/// How long a drain of the target may take, and then the closing of its pools: whatever holds it up (a
/// stall, a partition, a silent host, a stuck operation) is over by then.
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// The longest pauses before a target that ended is started again, in microseconds: a supervisor may
/// wait, or start it at once.
const OFF_MICROS_MAX: [u64; 3] = [100, 5_000, 100_000];

/// The least time between two fatal statuses of drives: one that fails again while it is being reset is
/// given up. Where a drive's controller loses commands, each of a reset's may have to be waited for.
const BETWEEN_FATAL: Duration = Duration::from_millis(600);

/// The same where all else of the drives works.
const BETWEEN_FATAL_OF_SOUND: Duration = Duration::from_millis(100);

/// How long a target waits that did not find what lies beneath its namespaces.
const AFTER_FAILED_BOOT: Duration = Duration::from_millis(50);

/// What must not be and was found to be, by whoever: the first of it counts.
#[derive(Clone, Default)]
pub struct Findings(Arc<Mutex<Option<String>>>);

impl Findings {
    /// Something that must not be.
    pub fn report(&self, what: String) {
        lock(&self.0).get_or_insert(what);
    }

    /// What was found.
    #[must_use]
    pub fn take(&self) -> Option<String> {
        lock(&self.0).take()
    }
}

/// The target's life.
enum Life {
    Booting(Boot),
    /// Its cores import their pools.
    Opening(Node),
    Running(Node),
    Draining(Node, Time),
    /// Its pools are closed.
    Closing(Node, Time),
    /// Off, until then.
    Off(Time),
}

/// See the module.
pub struct Machine {
    /// Where its target listens.
    pub address: SocketAddr,
    /// What its namespaces lie on.
    pub floors: Vec<Arc<Bays>>,
    /// Its power.
    pub supply: Supply,
    /// Power cuts.
    pub cuts: u64,
    /// What was found on it that must not be.
    pub findings: Findings,
    index: usize,
    plan: NodePlan,
    memories: Vec<Memory>,
    /// By core and floor.
    scratch: Vec<Vec<Scratch>>,
    life: Life,
    rng: Rng,
    hub: Hub,
    trace: Trace,
    /// What the hosts share.
    common: Option<Rc<Common>>,
    /// By floor: what the operator knows of a pool.
    ledgers: Vec<SharedLedger>,
    /// A drive's controller is to fail, and may again from then on.
    fatal_due: bool,
    next_fatal: Time,
}

impl Machine {
    /// The machine of appliance `index`, which is off. Somebody has made what lies on its floors.
    ///
    /// # Errors
    /// Says why that was not possible.
    pub fn new(
        (index, address): (usize, SocketAddr),
        plan: &NodePlan,
        faults: MediumFaults,
        mut rng: Rng,
        (hub, trace): (&Hub, &Trace),
    ) -> Result<Self, String> {
        assert!(!faults.are_silent(), "a bare disk cannot find them");
        let supply = Supply::default();
        let floors = plan.floors.iter();
        let floors: Vec<_> = floors
            .map(|floor| Bays::new(floor, faults, &supply, || rng.next_u64()))
            .collect();
        let target = plan.target;
        let scratch: Vec<_> = (0..target.cores).map(|_| scratch(&plan.floors)).collect();
        boot::make(&floors, &scratch[0], trace, &mut rng)?;
        floors.iter().for_each(|bays| bays.begin_faults());
        Ok(Self {
            address,
            floors,
            supply,
            cuts: 0,
            findings: Findings::default(),
            index,
            plan: plan.clone(),
            memories: (0..target.cores)
                .map(|_| memory(target.memory_bytes))
                .collect(),
            scratch,
            common: None,
            ledgers: plan
                .floors
                .iter()
                .map(|_| SharedLedger::default())
                .collect(),
            fatal_due: false,
            next_fatal: Time(0),
            life: Life::Off(Time(0)),
            rng,
            hub: hub.clone(),
            trace: trace.clone(),
        })
    }

    /// Makes it a part of the world whose hosts share this.
    pub fn join(&mut self, common: &Rc<Common>) {
        self.common = Some(common.clone());
    }

    /// What the operators of its pools are to do.
    fn assignments(&self) -> Vec<Assignment> {
        let common = self.common.as_ref().expect("a part of a world");
        let namespaces = (1u32..).zip(&self.plan.namespaces);
        let of = |(nsid, namespace): (u32, &NamespacePlan)| {
            let floor = namespace.floor;
            let FloorPlan::Pool(pool) = &self.plan.floors[floor] else {
                return None;
            };
            Some(Assignment {
                common: common.clone(),
                node: self.index,
                nsid,
                floor,
                pause_micros_max: pool.orders?,
                twins: pool.twins,
                tears: pool.base.may_fail(&MediumFaults::default()),
                ledger: self.ledgers[floor].clone(),
            })
        };
        namespaces.filter_map(of).collect()
    }

    fn media(&self) -> Vec<SimMedium> {
        self.floors.iter().flat_map(|bays| bays.media()).collect()
    }

    /// The queues of whoever uses its disks.
    fn queues(&self) -> Option<&Queues> {
        match &self.life {
            Life::Booting(boot) => Some(boot.queues()),
            Life::Off(_) => None,
            _ => self.process().map(Node::queues),
        }
    }

    /// Its address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// The process of the target, whether it serves anybody or not.
    fn process(&self) -> Option<&Node> {
        match &self.life {
            Life::Opening(node) | Life::Closing(node, _) => Some(node),
            _ => self.node(),
        }
    }

    /// The target, while there is one that serves hosts.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        match &self.life {
            Life::Running(node) | Life::Draining(node, _) => Some(node),
            _ => None,
        }
    }

    /// The target, unless it drains.
    #[must_use]
    pub fn running(&self) -> Option<&Node> {
        match &self.life {
            Life::Running(node) => Some(node),
            _ => None,
        }
    }

    /// True while there is a process.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !matches!(self.life, Life::Off(_))
    }

    /// The cores that turn.
    #[must_use]
    pub fn cores(&self) -> usize {
        match &self.life {
            Life::Booting(_) => 1,
            _ => self.process().map_or(0, Node::reactors),
        }
    }

    /// A core's reactor.
    #[must_use]
    pub fn reactor(&self, core: usize) -> Option<&Reactor> {
        if let Life::Booting(boot) = &self.life {
            return (core == 0).then_some(boot.reactor());
        }
        self.process()?.reactor(core)
    }

    /// Lets its disks do what is due.
    pub fn advance(&self, now: Time) {
        for bays in &self.floors {
            bays.advance(now);
        }
        if let Some(queues) = self.queues() {
            for queue in queues.borrow().iter() {
                queue.advance(now);
            }
        }
    }

    /// When something happens by itself.
    #[must_use]
    pub fn next_event(&self) -> Time {
        let mut next = match &self.life {
            Life::Off(until) | Life::Draining(_, until) | Life::Closing(_, until) => *until,
            Life::Booting(_) | Life::Opening(_) | Life::Running(_) => Time::FAR,
        };
        if let Some(queues) = self.queues() {
            let queues = queues.borrow();
            let due = queues.iter().filter_map(|queue| queue.next_event()).min();
            next = next.min(due.unwrap_or(Time::FAR));
        }
        let drives = self.drives().filter_map(Emulated::next_event).min();
        next.min(drives.unwrap_or(Time::FAR))
    }

    fn drives(&self) -> impl Iterator<Item = &Emulated> {
        self.floors
            .iter()
            .filter_map(|bays| bays.controller.as_ref())
    }

    /// What drives had taken they have done by then, or not: nobody will ask.
    fn interrupt_drives(&mut self, now: Time) {
        // All of it, what takes no longer, or nothing.
        let until = pick(&mut self.rng, &[1_000_000, 2_000, 200, 20, 0]);
        for drive in self.drives() {
            drive.poll(now.plus(Duration::from_micros(until)));
            drive.poll(now);
        }
    }

    /// Nobody has a drive any more: it reaches no memory.
    fn release_drives(&self) {
        for drive in self.drives() {
            // One that is pulled out reaches none anyhow.
            let _ = drive.device().poll_reset();
        }
    }

    /// A drive's controller reports a fatal status, as soon as it has something to do.
    pub fn fail_drive(&mut self) {
        self.fatal_due = true;
    }

    fn fail_busy_drive(&mut self, now: Time) {
        if !self.fatal_due || now < self.next_fatal {
            return;
        }
        let busy: Vec<_> = self.drives().filter(|drive| drive.pending() > 0).collect();
        let chosen = now.0 as usize % busy.len().max(1);
        let Some(drive) = busy.get(chosen) else {
            return;
        };
        drive.fail_fatally();
        self.note("has a drive that fails");
        let sound = self.plan.floors.iter().all(FloorPlan::has_sound_drives);
        self.fatal_due = false;
        self.next_fatal = now.plus(match sound {
            true => BETWEEN_FATAL_OF_SOUND,
            false => BETWEEN_FATAL,
        });
    }

    /// A drive is pulled out: the floor that it is, if any.
    pub fn pull_drive(&mut self) -> Option<usize> {
        let floors = self.floors.iter().enumerate();
        let drives: Vec<_> = floors
            .filter_map(|(floor, bays)| Some((floor, bays.controller.clone()?)))
            .collect();
        let chosen = self.rng.below(drives.len().max(1) as u64) as usize;
        let (floor, drive) = drives.get(chosen)?;
        drive.unplug();
        Some(*floor)
    }

    /// What happens to the target by the passing of time.
    ///
    /// # Errors
    /// Says what is wrong with that.
    pub fn live_on(&mut self, now: Time) -> Result<(), String> {
        if let Some(what) = self.findings.take() {
            return Err(format!("appliance {}: {what}", self.index));
        }
        self.fail_busy_drive(now);
        match &self.life {
            Life::Booting(boot) => match boot.found() {
                Some(found) => self.end_boot(found, now),
                None => Ok(()),
            },
            Life::Opening(node) => match node.opened() {
                Some(opened) => self.end_opening(opened, now),
                None => Ok(()),
            },
            Life::Off(until) if now >= *until => self.start(now),
            Life::Draining(node, _) if node.is_drained() => self.end_draining(now),
            Life::Draining(_, until) if now >= *until => {
                Err(format!("appliance {} does not drain", self.index))
            }
            Life::Closing(node, _) if node.has_closed() || node.has_failed_store() => {
                self.note("has closed its pools and ends");
                self.kill_process(now)
            }
            Life::Closing(_, until) if now >= *until => {
                Err(format!("appliance {} does not close its pools", self.index))
            }
            _ => Ok(()),
        }
    }

    /// Starts the target, once its files are free.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(&mut self, now: Time) -> Result<(), String> {
        let media = self.media();
        if let Some(until) = media.iter().filter_map(SimMedium::locked_until).max() {
            self.note("cannot start yet: its disks are locked");
            self.life = Life::Off(until.max(now));
            return Ok(());
        }
        self.plug_disks();
        if self
            .plan
            .floors
            .iter()
            .all(|floor| matches!(floor.base(), FloorPlan::Disk(_)))
        {
            let stores = media.into_iter().map(Store::Disk).collect();
            return self.start_cores(stores, None, now);
        }
        self.note("starts and looks for its stores");
        let (scratch, memories) = (&self.scratch, &self.memories);
        let boot = Boot::start(&self.floors, scratch, memories, &self.trace, now);
        self.life = Life::Booting(boot);
        Ok(())
    }

    /// Disks that nothing protects are there when the target starts.
    fn plug_disks(&self) {
        for bays in &self.floors {
            if matches!(bays.plan, FloorPlan::Disk(_)) {
                bays.media()
                    .iter()
                    .for_each(|medium| medium.set_gone(false));
            }
            if let Some(controller) = &bays.controller {
                controller.plug();
                bays.set_drive_faults(false);
            }
        }
    }

    fn end_boot(&mut self, found: Found, now: Time) -> Result<(), String> {
        let life = std::mem::replace(&mut self.life, Life::Off(now.plus(AFTER_FAILED_BOOT)));
        let Life::Booting(boot) = life else {
            unreachable!("a boot ends once");
        };
        match found {
            Ok(stores) => self.start_cores(stores, Some(boot.into_keeper()), now),
            Err(failed) => {
                self.note(&format!("does not start: {failed:?}"));
                let wrong = failed
                    .iter()
                    .find(|(floor, _)| !self.may_be_missing(*floor));
                match wrong {
                    None => Ok(()),
                    Some((floor, what)) => Err(format!(
                        "appliance {} does not start: floor {floor}: {what}",
                        self.index
                    )),
                }
            }
        }
    }

    /// An array that bears nothing may not be found at once.
    fn may_be_missing(&self, floor: usize) -> bool {
        match self.plan.floors[floor].base() {
            FloorPlan::Disk(_) | FloorPlan::Pool(_) => false,
            // It may be pulled out meanwhile.
            FloorPlan::Drive(_) => true,
            FloorPlan::Array(array) => array.redundancy() == 0 && !array.victims.is_empty(),
        }
    }

    fn start_cores(
        &mut self,
        stores: Vec<Store>,
        keeper: Option<Keeper>,
        now: Time,
    ) -> Result<(), String> {
        self.floors
            .iter()
            .for_each(|bays| bays.set_drive_faults(true));
        self.hub.restore_power(self.ip());
        let common = self.common.as_ref().expect("a part of a world");
        let around = Surroundings {
            node: self.index,
            plan: &self.plan,
            hub: &self.hub,
            memories: &self.memories,
            scratch: &self.scratch,
            trace: &self.trace,
            notices: &common.notices[self.index],
            offers: &common.offers[self.index],
            address: self.address,
        };
        let seed = self.rng.next_u64();
        let node = Node::start(&around, stores, keeper, seed, now);
        let opened = node.opened();
        self.life = Life::Opening(node);
        match opened {
            Some(opened) => self.end_opening(opened, now),
            None => Ok(()),
        }
    }

    /// The target has its pools, and serves its hosts from now on.
    fn end_opening(&mut self, opened: Result<(), String>, now: Time) -> Result<(), String> {
        if let Err(what) = opened {
            if self.process().is_some_and(Node::has_failed_store) {
                self.note(&format!("does not start: {what}"));
                self.kill_process(now)?;
                self.life = Life::Off(now.plus(AFTER_FAILED_BOOT));
                return Ok(());
            }
            return Err(format!("appliance {}: {what}", self.index));
        }
        let life = std::mem::replace(&mut self.life, Life::Off(now));
        let Life::Opening(mut node) = life else {
            unreachable!("pools are opened once");
        };
        match node.serve(self.assignments(), &self.findings) {
            Ok(()) => {
                self.life = Life::Running(node);
                self.note("starts");
                Ok(())
            }
            // A disk has gone since it was looked for.
            Err(error) => {
                self.life = Life::Opening(node);
                self.note(&format!("does not start: {error}"));
                self.kill_process(now)?;
                self.life = Life::Off(now.plus(AFTER_FAILED_BOOT));
                Ok(())
            }
        }
    }

    /// No host has anything to do with the target any more.
    fn end_draining(&mut self, now: Time) -> Result<(), String> {
        let closes =
            |node: &Node| node.has_pools() && node.is_drained() && !node.has_failed_store();
        let life = std::mem::replace(&mut self.life, Life::Off(now));
        match life {
            Life::Draining(node, _) if closes(&node) => {
                self.note("has drained and closes its pools");
                node.close_pools(&self.findings);
                self.life = Life::Closing(node, now.plus(DRAIN_MAX));
                Ok(())
            }
            life => {
                self.life = life;
                self.note("has drained and ends");
                self.kill_process(now)
            }
        }
    }

    /// The target's process is killed; it starts again in a while.
    ///
    /// # Errors
    /// Says what its end leaves behind.
    pub fn kill(&mut self, now: Time) -> Result<(), String> {
        self.note("is killed");
        self.kill_process(now)
    }

    fn kill_process(&mut self, now: Time) -> Result<(), String> {
        self.hub.end_process(self.ip());
        if let Some(queues) = self.queues() {
            queues.borrow().iter().for_each(|queue| queue.orphan());
        }
        self.interrupt_drives(now);
        let ended = self.end(now);
        self.release_drives();
        ended
    }

    /// The machine loses its power, and has it again in a while.
    ///
    /// # Errors
    /// Says what the end of the target leaves behind.
    pub fn cut_power(&mut self, now: Time) -> Result<(), String> {
        self.note("loses its power");
        self.cuts += 1;
        self.hub.cut_power(self.ip());
        // What is in flight may land.
        self.supply.restore();
        if let Some(queues) = self.queues() {
            queues.borrow().iter().for_each(|queue| queue.abandon());
        }
        self.interrupt_drives(now);
        let ended = self.end(now);
        for medium in self.media() {
            medium.cut_power();
        }
        self.drives().for_each(Emulated::lose_power);
        ended
    }

    /// The process is no more, and with it all memory that it had.
    fn end(&mut self, now: Time) -> Result<(), String> {
        let most = OFF_MICROS_MAX[self.rng.below(OFF_MICROS_MAX.len() as u64) as usize];
        let off = Duration::from_micros(self.rng.below(most));
        let life = std::mem::replace(&mut self.life, Life::Off(now.plus(off)));
        match life {
            Life::Running(node)
            | Life::Draining(node, _)
            | Life::Opening(node)
            | Life::Closing(node, _) => node.end()?,
            // What it holds goes before it is asked what is left.
            Life::Booting(boot) => drop(boot),
            Life::Off(_) => {}
        }
        if let Some(common) = &self.common {
            let models = common.models[self.index].iter();
            models.for_each(|model| model.borrow_mut().crash(OPERATOR));
            common.notices[self.index].borrow_mut().clear();
            common.offers[self.index].borrow_mut().end_life();
        }
        let held = self.scratch.iter().flatten().flat_map(Scratch::all);
        let held = held
            .map(|pool| pool.total_bytes() - pool.free_bytes())
            .sum::<usize>();
        match held {
            0 => Ok(()),
            _ => Err(format!(
                "the end of the process leaves {held} bytes of scratch memory"
            )),
        }
    }

    /// Lets the target end in order.
    pub fn drain(&mut self, now: Time) {
        match std::mem::replace(&mut self.life, Life::Off(Time::FAR)) {
            Life::Running(node) => {
                node.drain();
                self.life = Life::Draining(node, now.plus(DRAIN_MAX));
            }
            other => self.life = other,
        }
    }

    /// Detaches a namespace, or attaches the first one that is detached.
    pub fn reload(&mut self) {
        if self.running().is_none_or(Node::is_reloading) {
            return;
        }
        if !self.attach_next() {
            let nsid = 1 + self.rng.below(self.plan.namespaces.len() as u64) as u32;
            self.note(&format!("detaches namespace {nsid}"));
            if let Some(node) = self.running() {
                node.detach(nsid);
            }
        }
    }

    /// Offers something else to hosts.
    pub fn change_offer(&mut self) {
        let drawn = self.rng.next_u64();
        if let Some(node) = self.running() {
            let offer = node.change_offer(drawn);
            self.note(&format!("offers {offer:?}"));
        }
    }

    /// Attaches the first namespace that is detached; false where none is.
    pub fn attach_next(&self) -> bool {
        let Some(node) = self.running().filter(|node| !node.is_reloading()) else {
            return false;
        };
        let mut all = (1u32..).take(self.plan.namespaces.len());
        match all.find(|nsid| !node.is_attached(*nsid)) {
            Some(nsid) => {
                self.note(&format!("attaches namespace {nsid}"));
                node.attach(nsid);
                true
            }
            None => false,
        }
    }

    /// True where the target runs with all namespaces attached.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let all = self.plan.namespaces.len();
        let attached = |node: &Node| (1u32..).take(all).all(|nsid| node.is_attached(nsid));
        let running = self.running();
        running
            .is_some_and(|node| !node.is_reloading() && attached(node) && node.are_arrays_whole())
    }

    /// One of the media that nothing protects.
    pub fn plain_medium(&mut self) -> Option<SimMedium> {
        let plain = self.floors.iter();
        let plain = plain.filter(|bays| matches!(bays.plan, FloorPlan::Disk(_)));
        let media: Vec<_> = plain.flat_map(|bays| bays.media()).collect();
        let chosen = self.rng.below(media.len().max(1) as u64) as usize;
        media.get(chosen).cloned()
    }

    /// A member of an array is unplugged; or, where one was, it is plugged in again, or another one.
    pub fn move_member(&mut self, now: Time) {
        let all = self.floors.iter();
        let arrays: Vec<_> = all
            .filter_map(|bays| {
                let plan = bays.plan.array().filter(|plan| plan.loses_members())?;
                Some((bays.clone(), plan.clone()))
            })
            .collect();
        if arrays.is_empty() {
            return;
        }
        let (bays, plan) = &arrays[self.rng.below(arrays.len() as u64) as usize];
        let victim = plan.victims[self.rng.below(plan.victims.len() as u64) as usize];
        let medium = bays.media()[victim].clone();
        if !medium.is_gone() {
            self.note(&format!("loses the member in bay {victim}"));
            medium.cut_power();
            medium.set_gone(true);
            // It is seen to be gone, however soon it is back.
            self.advance(now);
        } else if self.rng.once_in(3) {
            self.note(&format!("gets a new member in bay {victim}"));
            bays.replace(victim, self.rng.next_u64());
        } else {
            self.note(&format!("gets the member in bay {victim} back"));
            medium.set_gone(false);
        }
    }

    /// Its pools are to be checked.
    pub fn check_pools(&self) {
        if let Some(node) = self.running() {
            node.check_pools(&self.findings);
        }
    }

    /// True once they are.
    #[must_use]
    pub fn has_checked_pools(&self) -> bool {
        self.running().is_some_and(Node::has_checked)
    }

    /// Its arrays are to be scrubbed.
    pub fn scrub(&self) {
        if let Some(node) = self.running() {
            node.scrub();
        }
    }

    /// Its disks have space, and all members are there.
    pub fn heal(&self) {
        for bays in &self.floors {
            for medium in bays.media() {
                medium.set_full(false);
                if bays.plan.array().is_some() {
                    medium.set_gone(false);
                }
            }
        }
    }

    /// True where a drive is being reset.
    #[must_use]
    pub fn resets_drive(&self) -> bool {
        self.process().is_some_and(Node::resets_drive)
    }

    /// No more faults: what is broken for good is replaced.
    ///
    /// # Errors
    /// Says what the end of a target without its disk leaves behind.
    pub fn calm_down(&mut self, now: Time) -> Result<(), String> {
        self.fatal_due = false;
        self.floors.iter().for_each(|bays| bays.calm_down());
        let stopped = self.process().is_some_and(Node::has_failed_store);
        let pulled = self.drives().any(|drive| !drive.is_present());
        if stopped || pulled || self.media().iter().any(SimMedium::is_gone) {
            return self.kill(now);
        }
        Ok(())
    }

    fn note(&self, what: &str) {
        let words = [event::FAULT, what.len() as u64, self.index as u64];
        let index = self.index;
        self.trace
            .note(words, || format!("appliance {index} {what}"));
    }
}
