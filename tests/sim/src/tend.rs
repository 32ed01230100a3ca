//! What the operator and the first core do for an array: they give members back and replace them, and
//! run its sweeps, one at a time.
//!
//! Invariant: a sweep that ends early is begun again; what is lost for good says so.

use std::{rc::Rc, sync::Arc, time::Duration};

use corebay_core::{disk::DiskError, rng::Rng};
use corebay_raid::{
    state::RoleState,
    sweep::{Pace, Scrubbed, SweepError},
};
use corebay_target::core::Core;

use crate::{
    machine::Findings,
    medium::{MediumFaults, SimMedium},
    node::SimEnvironment,
    plan::pick,
    store::{ArrayStore, CoreArray},
    trace::{event, lock},
};

/// How often it is looked whether there is something to do.
const LOOK: Duration = Duration::from_millis(20);

/// How often marks are taken away where nothing is written any more: each life draws one of these.
const TIDY_EVERY: [Duration; 2] = [Duration::from_millis(3), Duration::from_millis(60)];

/// See the module.
pub struct Tender {
    core: Rc<Core<SimEnvironment>>,
    store: Arc<ArrayStore>,
    array: CoreArray,
    findings: Findings,
}

impl Tender {
    /// Tends an array from now on, on its first core.
    ///
    /// # Errors
    /// Where the array cannot be opened there.
    pub fn start(
        core: &Rc<Core<SimEnvironment>>,
        store: &Arc<ArrayStore>,
        findings: &Findings,
        seed: u64,
    ) -> Result<(), corebay_core::disk::DiskError> {
        let tender = Rc::new(Self {
            core: core.clone(),
            store: store.clone(),
            array: core.environment.opener.open_array(store)?,
            findings: findings.clone(),
        });
        let mut rng = Rng::from_seed(seed);
        let every = pick(&mut rng, &TIDY_EVERY);
        let (members, marks) = (tender.clone(), tender.clone());
        core.spawn_control(async move { members.members(rng).await });
        core.spawn_control(async move { marks.tidy(every).await });
        core.spawn_control(async move { tender.sweeps().await });
        Ok(())
    }

    fn found(&self, what: &str) {
        let floor = self.store.floor;
        self.findings
            .report(format!("the array on floor {floor}: {what}"));
    }

    fn note(&self, what: impl FnOnce() -> String) {
        let floor = self.store.floor;
        let trace = &self.core.environment.opener.trace;
        trace.note([event::FAULT, floor as u64, 0], || {
            format!("the array on floor {floor}: {}", what())
        });
    }

    async fn pause(&self) {
        self.core.reactor.sleep(LOOK).await;
    }

    /// Takes marks away from time to time.
    async fn tidy(&self, every: Duration) {
        loop {
            self.core.reactor.sleep(every).await;
            // Where a member fails amid it, the next one does it.
            let _ = self.array.tidy().await;
        }
    }

    /// Gives each role whose member failed a member again.
    async fn members(&self, mut rng: Rng) {
        loop {
            self.pause().await;
            let assembled = self.array.assembled();
            let roles = assembled.state().roles;
            let failed = roles
                .iter()
                .position(|role| role.state == RoleState::Failed);
            let Some(role) = failed.filter(|_| !assembled.is_stopped()) else {
                continue;
            };
            if let Some(spare) = self.store.take_spare() {
                self.use_spare(role, spare).await;
                continue;
            }
            let medium = self.store.bays.media()[role].clone();
            if medium.is_gone() || !self.give(role, &medium).await {
                continue;
            }
            let had_it = self.store.holders()[role].clone();
            let known = had_it.is_some_and(|had| had.is_same(&medium));
            let outcome = match known {
                true => self.array.take_back(role).await,
                false => {
                    let scratch = &self.core.environment.opener.scratch[self.store.floor];
                    let pool = scratch.array.clone().expect("an array has some");
                    let replaced = self.array.replace(role, &mut rng, &pool).await;
                    replaced.map(drop)
                }
            };
            self.note(|| match known {
                true => format!("takes role {role} back: {outcome:?}"),
                false => format!("gets a new member for role {role}: {outcome:?}"),
            });
            match outcome {
                Ok(()) => self.store.set_holder(role, medium),
                // Somebody takes another one.
                Err(SweepError::Occupied(_) | SweepError::Refused(_)) => {
                    self.store.bays.replace(role, rng.next_u64())
                }
                Err(SweepError::Disk(_)) if !known => {
                    self.store.bays.replace(role, rng.next_u64());
                }
                // Later.
                Err(SweepError::Disk(_) | SweepError::State(_) | SweepError::StillOut) => {}
                Err(other) => self.found(&format!("role {role} gets no member: {other}")),
            }
        }
    }

    /// The spare gets a role; where that fails, the array has none any more until it is found again.
    async fn use_spare(&self, role: usize, spare: SimMedium) {
        let known = self.array.assembled().state().spares.first().copied();
        let Some(uuid) = known else { return };
        if spare.is_gone() || !self.give(role, &spare).await {
            return;
        }
        let outcome = self.array.use_spare(role, uuid).await;
        self.note(|| format!("gives role {role} to its spare: {outcome:?}"));
        match outcome {
            Ok(()) => self.store.set_holder(role, spare),
            Err(SweepError::Disk(_) | SweepError::State(_) | SweepError::StillOut) => {}
            Err(other) => self.found(&format!("role {role} does not get the spare: {other}")),
        }
    }

    /// Every core has this medium for a role from now on; false where it is gone already.
    async fn give(&self, role: usize, medium: &SimMedium) -> bool {
        let (store, medium) = (self.store.clone(), medium.clone());
        let opened = self.core.call_all(move |core, reply| {
            let opener = &core.environment.opener;
            let opened = opener.open_leaf(&medium).and_then(|disk| {
                opener.open_array(&store)?.set_member(role, Some(disk));
                Ok(())
            });
            reply.send(core, opened.is_ok());
        });
        opened.await.into_iter().all(|good| good)
    }

    async fn sweeps(&self) {
        let (mut begun, mut looked, mut equal) = (false, false, false);
        loop {
            let assembled = self.array.assembled();
            let waits = begun && assembled.resync_waits();
            if !looked && !waits {
                begun = true;
                let outcome = self.array.resync(Pace::default()).await;
                self.note(|| format!("resync: {outcome:?}"));
                equal = outcome.is_ok() && !assembled.needs_resync();
                let lost = matches!(
                    outcome,
                    Err(SweepError::Lost { .. } | SweepError::Disk(DiskError::UnrecoveredRead))
                );
                looked = equal || lost && self.may_lose();
                self.store.ask_scrub();
            }
            let roles = self.array.assembled().state().roles;
            let rebuilding = roles
                .iter()
                .position(|role| matches!(role.state, RoleState::Rebuilding { .. }));
            if let Some(role) = rebuilding {
                let outcome = self.array.rebuild(role, Pace::default()).await;
                self.note(|| format!("rebuilds role {role}: {outcome:?}"));
                if let Err(error @ SweepError::Lost { .. }) = outcome {
                    self.lost(&error.to_string());
                }
            } else if looked && self.store.take_scrub() && self.scrub_all(equal).await.is_none() {
                // It was cut off by a member's end, say: once more.
                self.store.ask_scrub();
            }
            self.pause().await;
        }
    }

    /// A bit of parity changes by itself.
    fn rot_parity(&self) {
        let bays = &self.store.bays;
        let Some(plan) = bays.plan.array() else {
            return;
        };
        if !plan.parity_rots || bays.is_calm() || !self.array.assembled().state().is_whole() {
            return;
        }
        let geometry = self.array.assembled().geometry();
        let stripe = self.core.reactor.now().0 % geometry.stripes();
        let role = geometry.role_of(stripe, geometry.data());
        let at = geometry.row_lba(stripe, 0).0;
        if let Some(medium) = &self.store.holders()[role] {
            self.note(|| format!("parity of stripe {stripe} changes on role {role}"));
            medium.rot(at);
            lock(&bays.rotten).push(stripe);
        }
    }

    /// Once all was made equal, no stripe may disagree with itself, but where parity has changed by itself.
    /// What a first scrub has mended, a second one finds no more; where blocks are lost, the first one may
    /// have seen only a part of their stripes. None where one did not come to its end.
    async fn scrub_all(&self, equal: bool) -> Option<()> {
        self.rot_parity();
        let first = self.scrub().await?;
        let rotten = std::mem::take(&mut *lock(&self.store.bays.rotten));
        let known = |of: &Scrubbed, stripes: &[u64]| {
            let mut all = of.mismatches.iter();
            all.all(|stripe| stripes.contains(stripe))
        };
        if equal && !known(&first, &rotten) {
            self.found(&format!("a scrub found {first:?}, with rotten {rotten:?}"));
        }
        if !equal || !rotten.is_empty() {
            let second = self.scrub().await?;
            if !known(&second, &first.lost) {
                self.found(&format!("a scrub found {second:?}, after {first:?}"));
            }
        }
        self.store.end_scrub();
        Some(())
    }

    async fn scrub(&self) -> Option<Scrubbed> {
        let outcome = self.array.scrub(Pace::default()).await;
        self.note(|| format!("scrub: {outcome:?}"));
        let found = outcome.ok()?;
        if !found.lost.is_empty() {
            self.lost(&format!("{found:?}"));
        }
        Some(found)
    }

    /// Blocks may be lost, whatever the array does.
    fn may_lose(&self) -> bool {
        let plan = &self.store.bays.plan;
        plan.may_fail(&MediumFaults::default())
    }

    fn lost(&self, what: &str) {
        // What is read once more may fail once more.
        let plan = &self.store.bays.plan;
        let reads_fail = (0..self.store.holders().len()).any(|bay| {
            let faults = plan.faults(bay, MediumFaults::default());
            faults.transient_read + faults.latent_read != 0
        });
        if !reads_fail && !self.may_lose() {
            self.found(what);
        }
    }
}
