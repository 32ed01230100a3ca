//! The first core's care for each array: it does what is ordered, lets spares step in, and runs one
//! sweep at a time: resync after a crash, rebuild, scrub.

use std::{rc::Rc, sync::Arc, time::Duration};

use corebay_core::disk::{Disk, DiskError};
use corebay_raid::{array::Array, state::RoleState};
use corebay_target::core::Core;
use tracing::{info, warn};

use super::{
    arrays::{ArrayMedium, LastScrub, Named, Order, Sweep, SweepKind, random},
    environment::{MachineEnvironment, PlainDisk},
};

/// How often it is looked whether there is something to do.
const LOOK: Duration = Duration::from_millis(100);

/// How long a sweep that failed is not begun again.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Looks after which marks of the dirty map are taken away where nothing is written any more.
const LOOKS_PER_TIDY: u32 = 50;

type MachineCore = Rc<Core<MachineEnvironment>>;

/// Tends an array from now on. On the first core.
pub fn tend(core: &MachineCore, medium: Arc<ArrayMedium>, array: Rc<Array<PlainDisk>>) {
    let tender = Rc::new(Tender {
        core: core.clone(),
        medium,
        array,
    });
    let orders = tender.clone();
    core.spawn_control(async move { orders.obey().await });
    core.spawn_control(async move { tender.sweep().await });
}

struct Tender {
    core: MachineCore,
    medium: Arc<ArrayMedium>,
    array: Rc<Array<PlainDisk>>,
}

impl Tender {
    /// Does what is ordered, and what has to be done without: apart from sweeps, which take long.
    async fn obey(&self) {
        let mut looks = 0;
        loop {
            self.core.reactor.sleep(LOOK).await;
            self.use_spare().await;
            looks += 1;
            if looks % LOOKS_PER_TIDY == 0
                && let Err(error) = self.array.tidy().await
            {
                warn!(array = self.medium.name, %error, "the dirty map could not be written");
            }
            let next = {
                let mut tending = self.medium.tending();
                // A scrub waits for the sweep that is under way.
                let ready = |(order, _): &(Order, _)| !matches!(order, Order::Scrub);
                let place = tending.orders.iter().position(ready);
                place.and_then(|place| tending.orders.remove(place))
            };
            let Some((order, answer)) = next else {
                continue;
            };
            let done = self.do_order(order).await;
            if let Err(why) = &done {
                warn!(array = self.medium.name, "{why}");
            }
            let _ = answer.send(done);
        }
    }

    async fn do_order(&self, order: Order) -> Result<(), String> {
        let name = &self.medium.name;
        match order {
            Order::Scrub => {}
            Order::Fail { role } => {
                let failed = self.array.give_up(role).await;
                failed.map_err(|error| format!("role {role} stays: {error}"))?;
                warn!(array = name, role, "given up");
            }
            Order::Replace { role, by } => {
                self.give(role, &by).await?;
                let mut rng = random();
                let scratch = &self.core.memory.scratch;
                let replaced = self.array.replace(role, &mut rng, scratch);
                if let Err(error) = replaced.await {
                    return Err(format!(
                        "the disk \"{}\" does not become role {role}: {error}",
                        by.name
                    ));
                }
                info!(array = name, role, disk = by.name, "replaced");
                self.medium.set_member(role, by);
            }
            Order::Return { role, by } => {
                self.give(role, &by).await?;
                let returned = self.array.take_back(role).await;
                returned.map_err(|error| format!("role {role} is not taken back: {error}"))?;
                self.medium.set_member(role, by);
            }
        }
        Ok(())
    }

    /// Every core has this disk for a role from now on.
    async fn give(&self, role: usize, by: &Named) -> Result<(), String> {
        let state = self.array.assembled().state();
        match state.roles.get(role).map(|record| record.state) {
            Some(RoleState::Failed) => {}
            Some(_) => return Err(format!("role {role} has a member that has not failed")),
            None => return Err(format!("there is no role {role}")),
        }
        let (medium, plain) = (self.medium.clone(), by.medium.clone());
        let opened = self.core.call_all(move |core, reply| {
            let environment = &core.environment;
            let opened = environment.devices.open(&plain).and_then(|disk| {
                let array = environment.open_array(&medium)?;
                array.set_member(role, Some(disk));
                Ok(())
            });
            reply.send(core, opened);
        });
        let opened: Result<Vec<()>, DiskError> = opened.await.into_iter().collect();
        opened.map_err(|error| format!("the disk \"{}\" cannot be opened: {error}", by.name))?;
        Ok(())
    }

    /// A spare steps in for the first role whose member failed.
    async fn use_spare(&self) {
        let state = self.array.assembled().state();
        if state.is_whole() || self.array.assembled().is_stopped() {
            return;
        }
        let failed = |record: &corebay_raid::state::RoleRecord| record.state == RoleState::Failed;
        let Some(role) = state.roles.iter().position(failed) else {
            return;
        };
        let spare = {
            let mut tending = self.medium.tending();
            let returning = |(order, _): &(Order, _)| matches!(order, Order::Return { .. });
            match tending.spares.is_empty() || tending.orders.iter().any(returning) {
                true => return,
                false => tending.spares.remove(0),
            }
        };
        info!(
            array = self.medium.name,
            role,
            disk = spare.name,
            "a spare steps in"
        );
        let by = spare.clone();
        if let Err(why) = self.do_order(Order::Replace { role, by }).await {
            warn!(array = self.medium.name, "{why}");
            self.medium.tending().refused.push((spare, why));
        }
    }

    async fn sweep(&self) {
        self.run(SweepKind::Resync, 0).await;
        loop {
            let state = self.array.assembled().state();
            let rebuilding = state
                .roles
                .iter()
                .enumerate()
                .find_map(|(role, record)| match record.state {
                    RoleState::Rebuilding { stripes, .. } => Some((role, stripes)),
                    _ => None,
                });
            let stopped = self.array.assembled().is_stopped();
            if let Some((role, from)) = rebuilding.filter(|_| !stopped) {
                self.run(SweepKind::Rebuild(role), from).await;
            } else if let Some(answer) = self.scrub_order() {
                let _ = answer.send(Ok(()));
                self.run(SweepKind::Scrub, 0).await;
            }
            self.core.reactor.sleep(LOOK).await;
        }
    }

    fn scrub_order(&self) -> Option<super::arrays::Answer> {
        let mut tending = self.medium.tending();
        let place = tending
            .orders
            .iter()
            .position(|(order, _)| matches!(order, Order::Scrub));
        tending.orders.remove(place?).map(|(_, answer)| answer)
    }

    async fn run(&self, kind: SweepKind, from: u64) {
        let (name, since) = (&self.medium.name, self.core.reactor.now());
        self.medium.tending().sweep = Some(Sweep {
            kind: kind.clone(),
            since,
            from,
        });
        let pace = self.medium.pace;
        let outcome = match kind {
            SweepKind::Resync => self.array.resync(pace).await,
            SweepKind::Rebuild(role) => {
                info!(array = name, role, "rebuild");
                self.array.rebuild(role, pace).await
            }
            SweepKind::Scrub => {
                info!(array = name, "scrub");
                let outcome = self.array.scrub(pace).await;
                self.medium.tending().scrubbed = Some(LastScrub {
                    at: self.core.reactor.now(),
                    outcome: outcome.clone().map_err(|error| error.to_string()),
                });
                outcome.map(|found| {
                    let (mismatches, lost) = (found.mismatch_count, found.lost.len());
                    info!(array = name, mismatches, lost, "scrubbed");
                })
            }
        };
        self.medium.tending().sweep = None;
        match (outcome, kind) {
            (Ok(()), SweepKind::Rebuild(role)) => info!(array = name, role, "rebuilt"),
            (Ok(()), _) => {}
            (Err(error), kind) => {
                warn!(array = name, ?kind, %error, "ended early");
                self.core.reactor.sleep(AFTER_FAILURE).await;
            }
        }
    }
}

/// Ends an array cleanly: what is written is durable, and nothing is marked that is in place.
pub async fn end(array: &Array<PlainDisk>) -> Result<(), DiskError> {
    array.flush().await?;
    array.tidy().await.map(drop)
}
