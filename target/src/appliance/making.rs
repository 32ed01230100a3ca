//! What is told of an array that is being made, and that nobody waits for a disk of it that hangs.
//!
//! Invariant: where a disk hangs, whoever ordered the array is told, but its disks stay claimed until all of
//! them have ended what was asked of them.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use corebay_core::{buffer::BufferPool, reactor::Reactor, units::Time};
use corebay_raid::{
    create::{CreateError, Progress, create_watched},
    state::Uuid,
    within,
};
use serde_json::{Value, json};
use tracing::info;

use super::{
    array_plan::ArrayPlan,
    arrays::{Finding, Found, Missed, Named, open_all, random},
    environment::Devices,
};
use crate::cli::Failure;

/// How long no disk may get any further.
const STALL: Duration = Duration::from_secs(60);

/// How often it is looked at, and after how many looks it is told.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS_PER_LINE: u32 = 10;

/// An array that is being made.
pub struct Making {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub progress: Progress,
    level: String,
    members: Vec<String>,
    trouble: Mutex<Option<String>>,
}

impl Making {
    /// Of a plan and the names of its members.
    pub fn new<'a>(plan: &ArrayPlan, members: impl Iterator<Item = &'a String>) -> Arc<Self> {
        let members: Vec<String> = members.cloned().collect();
        Arc::new(Self {
            name: plan.name.clone(),
            progress: Progress::new(members.len()),
            level: plan.level.to_string(),
            members,
            trouble: Mutex::new(None),
        })
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For who asks how it is.
    pub fn describe(&self) -> Value {
        let (done, total) = self.progress.bytes();
        json!({
            "name": self.name,
            "level": self.level,
            "state": "being made",
            "trouble": self.trouble().clone(),
            "sweep": {
                "kind": "create",
                "role": null,
                "done_bytes": done,
                "total_bytes": total,
                "bytes_per_second": null,
                "seconds_left": null,
            },
        })
    }

    fn hanging(&self) -> String {
        let names = self.progress.behind().map(|member| &self.members[member]);
        let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
        format!("the disk {} does not answer", names.join(", "))
    }
}

/// Waits for what makes an array as long as its members get on: else it says which do not, and whoever
/// called has to see to what is still under way.
pub async fn while_it_moves<F: Future>(
    reactor: &Reactor,
    making: &Making,
    work: Pin<&mut F>,
) -> Result<F::Output, String> {
    while_it_moves_and(reactor, making, work, |_, _| {}).await
}

/// The same; `tell` is told how far it is after each look.
async fn while_it_moves_and<F: Future>(
    reactor: &Reactor,
    making: &Making,
    mut work: Pin<&mut F>,
    tell: impl Fn(u64, u64),
) -> Result<F::Output, String> {
    let (mut seen, mut since, mut looks): (_, Time, _) = ((0, 0), reactor.now(), 0);
    loop {
        if let Some(output) = within(reactor, LOOK, work.as_mut()).await {
            return Ok(output);
        }
        let (done, total) = making.progress.bytes();
        looks += 1;
        tell(done, total);
        if total > 0 && looks % LOOKS_PER_LINE == 0 {
            let (array, percent) = (&making.name, u128::from(done) * 100 / u128::from(total));
            info!(array, percent, "is being made");
        }
        if total == 0 || (done, total) != seen {
            (seen, since) = ((done, total), reactor.now());
        } else if reactor.now() >= since.plus(STALL) {
            return Err(making.hanging());
        }
    }
}

impl Finding {
    /// Finds it at a start, or makes it: a disk that hangs ends the start.
    pub async fn find_at_start(
        &self,
        devices: &Devices,
        pool: &BufferPool,
    ) -> Result<Found, Missed> {
        let work = std::pin::pin!(self.find(devices, pool));
        let found = while_it_moves(&devices.reactor, &self.making, work).await;
        found.unwrap_or_else(|why| Err(self.hangs(&why).into()))
    }

    /// Makes it while the appliance runs. `tell` is called at once where a disk hangs; the end is waited for.
    pub async fn make_while_running(
        &self,
        devices: &Devices,
        pool: &BufferPool,
        tell: impl Fn(String),
    ) -> Result<Found, Failure> {
        let mut work = std::pin::pin!(self.make_new(devices, pool));
        let made = while_it_moves(&devices.reactor, &self.making, work.as_mut()).await;
        match made {
            Ok(found) => found,
            Err(why) => {
                let failure = self.hangs(&why);
                *self.making.trouble() = Some(failure.to_string());
                tell(failure.to_string());
                let _ = work.await;
                Err(failure)
            }
        }
    }

    /// Makes it where no appliance runs: a disk that hangs ends that.
    pub async fn make_alone(
        &self,
        devices: &Devices,
        pool: &BufferPool,
        tell: impl Fn(u64, u64),
    ) -> Result<Found, Failure> {
        let work = std::pin::pin!(self.make_new(devices, pool));
        let made = while_it_moves_and(&devices.reactor, &self.making, work, tell).await;
        made.unwrap_or_else(|why| Err(self.hangs(&why)))
    }

    /// Makes the array of its members, which are all there and blank, or may lose what they hold.
    pub(super) async fn make(&self, devices: &Devices, pool: &BufferPool) -> Result<Uuid, Failure> {
        let name = &self.plan.name;
        if let Some((missing, _)) = self.members.iter().find(|(_, medium)| medium.is_none()) {
            return Err(Failure::new(
                format!(
                    "array \"{name}\" cannot be made: the disk \"{missing}\" could not be opened"
                ),
                "all members have to be there when an array is made",
            ));
        }
        let there = self.there();
        let members = &there[..self.members.len()];
        let smallest = members.iter().map(|disk| disk.medium.info().bytes()).min();
        let wish = (self.plan).wish(members[0].medium.info().block_size, smallest.unwrap_or(0));
        let lose = members
            .iter()
            .map(|disk| self.plan.lose.contains(&disk.name));
        let (disks, lose) = (open_all(devices, members)?, lose.collect::<Vec<_>>());
        let (progress, rng) = (&self.making.progress, &mut random());
        let made = create_watched(&disks, wish, name, &lose, rng, pool, progress).await;
        let uuid = made.map_err(|error| self.cannot_make(&error, members))?;
        info!(array = name, %uuid, level = %self.plan.level, "made");
        Ok(uuid)
    }

    fn cannot_make(&self, error: &CreateError, members: &[Named]) -> Failure {
        let named = |member: &usize| &members[*member].name;
        let what = match error {
            CreateError::Occupied { member, by } => {
                format!("the disk \"{}\" is not free: {by}", named(member))
            }
            CreateError::Member { member, error } => {
                format!("the disk \"{}\": {error}", named(member))
            }
            CreateError::BlockSize { member, size } => {
                format!("the disk \"{}\" has blocks of {size} bytes", named(member))
            }
            other => other.to_string(),
        };
        let help = match error {
            CreateError::Occupied { member, .. } => format!(
                "nothing was written; name another disk, or, to lose what it holds, use `corebay \
                 array create ... --lose {}`",
                named(member)
            ),
            _ => String::new(),
        };
        Failure::new(
            format!("array \"{}\" cannot be made: {what}", self.plan.name),
            help,
        )
    }

    fn hangs(&self, why: &str) -> Failure {
        Failure::new(
            format!("array \"{}\" cannot be made: {why}", self.plan.name),
            "its disks are used for nothing else until all have ended what was asked of them",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hangs_is_told_by_name_while_the_others_get_on() {
        let plan = super::super::arrays::plan_of_a_mirror();
        let names = ["a".to_owned(), "b".to_owned()];
        let making = Making::new(&plan, names.iter());
        let reactor = Reactor::new(corebay_core::units::CoreId(0), 4, Time(0));
        let (own, on) = (making.clone(), reactor.clone());
        let said = Arc::new(Mutex::new(None));
        let told = said.clone();
        let task = async move {
            let never = std::pin::pin!(std::future::pending::<()>());
            let ended = while_it_moves(&on, &own, never).await;
            *told.lock().unwrap() = ended.err();
        };
        assert!(reactor.spawn(task).is_ok());
        let mut now = 0;
        let mut pass = |seconds: u64| {
            for _ in 0..seconds {
                now += 1_000_000_000;
                reactor.poll_once(Time(now));
            }
        };
        // Nothing is being made yet.
        pass(200);
        assert_eq!(*said.lock().unwrap(), None);
        for _ in 0..3 {
            making.progress.begin(100);
            making.progress.add(0, 10);
            pass(40);
            assert_eq!(*said.lock().unwrap(), None);
        }
        assert_eq!(making.describe()["sweep"]["done_bytes"], 30);
        pass(80);
        let said = said.lock().unwrap().clone().expect("it hangs");
        assert_eq!(said, "the disk \"b\" does not answer");
    }
}
