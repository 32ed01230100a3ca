//! Arrays that change their shape while hosts use them: by the first core, with every core's door shut
//! for the short while that it takes to write superblocks and to assemble the array anew.
//!
//! # Order
//! 1. No sweep goes on, and none begins. Every core shuts its door and waits for what is within.
//! 2. The members are told the new shape (`raid/src/reshape.rs` has the order of that).
//! 3. Every core lets go of the array; the first one assembles it anew; every core opens it.
//! 4. The doors open. Where step 3 fails it is tried again some times; then hosts find the disk gone,
//!    and the members say at the next start what was done.

use std::time::Duration;

use corebay_core::disk::DiskError;
use corebay_raid::{
    array::{Array, Assembled},
    assemble::{Assembly, assemble},
    reshape::{Change, ReshapeError},
    state::RoleState,
};
use tracing::{error, info};

use super::{
    arrays::{Named, Sweep, SweepKind, open_all, random},
    tend::Tender,
};

/// Attempts to assemble an array anew, and the pause between them.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// How long disks may take to end what was asked of them, while hosts wait.
const QUIET: Duration = Duration::from_millis(500);

/// How long a scrub may take to end its stripes under way, at whatever pace.
const SCRUB_PAUSES: Duration = Duration::from_secs(20);

impl Tender {
    /// Makes the array as large as its members allow.
    pub(super) async fn grow(&self) -> Result<(), String> {
        let array = self.array()?;
        array.grown().map_err(|why| self.cannot(&why))?;
        self.begin().await?;
        self.medium.tending().sweep = Some(Sweep {
            kind: SweepKind::Grow,
            since: self.core.reactor.now(),
            from: 0,
        });
        let prepared = array.prepare_growth().await;
        drop(array);
        self.medium.tending().sweep = None;
        let grown = match prepared {
            Ok(()) => self.change(Change::Grow).await,
            Err(why) => Err(self.cannot(&why)),
        };
        self.reshaping.set(false);
        grown?;
        let medium = self.medium.clone();
        let tell = move |main: &mut super::run::Main| main.array_has_grown(&medium);
        self.core.environment.keeper.then(tell);
        Ok(())
    }

    /// Changes the array's shape.
    pub(super) async fn reshape(&self, change: Change) -> Result<(), String> {
        self.begin().await?;
        let changed = self.change(change).await;
        self.reshaping.set(false);
        changed
    }

    fn cannot(&self, why: &ReshapeError) -> String {
        format!("the array \"{}\" stays as it is: {why}", self.medium.name)
    }

    /// No sweep is under way from now on. A scrub goes on afterwards.
    async fn begin(&self) -> Result<(), String> {
        self.reshaping.set(true);
        let under_way = || self.medium.tending().sweep.as_ref().map(|s| s.kind.clone());
        let deadline = self.core.reactor.now().plus(SCRUB_PAUSES);
        while under_way() == Some(SweepKind::Scrub) && self.core.reactor.now() < deadline {
            self.core.reactor.sleep(QUIET / 50).await;
        }
        let what = match under_way() {
            None => return Ok(()),
            Some(SweepKind::Resync) => "a resync",
            Some(SweepKind::Rebuild(_)) => "a rebuild",
            Some(SweepKind::Scrub) => "a scrub",
            Some(SweepKind::Grow) => "growth",
        };
        self.reshaping.set(false);
        Err(format!("{what} is under way: wait for its end"))
    }

    async fn change(&self, change: Change) -> Result<(), String> {
        let array = self.array()?;
        let medium = self.medium.clone();
        self.core
            .call_all(move |core, reply| {
                let replying = core.clone();
                match core.environment.door(&medium) {
                    Some(door) => door.shut(move || reply.send(&replying, ())),
                    None => reply.send(core, ()),
                }
            })
            .await;
        let leaves = match change {
            Change::RemoveLeg { role } => Some(role),
            _ => None,
        };
        if let Some(role) = self.is_unquiet(leaves).await {
            drop(array);
            self.reopen().await;
            return Err(format!(
                "the disk of role {role} has not ended what was asked of it: the array \"{}\" stays as \
                 it is until it has",
                self.medium.name
            ));
        }
        let before = self.medium.assembled();
        let hangs = leaves.filter(|role| before.unended(*role) > 0);
        let hangs = hangs.and_then(|role| {
            let disk = self.medium.members().get(role).cloned().flatten();
            Some((role, disk?))
        });
        let changed = array.reshape(change, &mut random()).await;
        drop(array);
        if let (Ok(()), Some((role, disk))) = (&changed, hangs) {
            // Assembled anew, the array knows nothing of what the disk has still to end.
            let is_out = move || before.unended(role) > 0;
            let keep = move |main: &mut super::run::Main| {
                main.exports.media.keep_from_use(disk.name, is_out);
            };
            self.core.environment.keeper.then(keep);
        }
        let again = self.assemble_again().await;
        self.reopen().await;
        again?;
        changed.map_err(|why| self.cannot(&why))?;
        info!(array = self.medium.name, ?change, "the shape has changed");
        Ok(())
    }

    async fn reopen(&self) {
        let medium = self.medium.clone();
        self.core
            .call_all(move |core, reply| {
                if let Some(door) = core.environment.door(&medium) {
                    door.reopen();
                }
                reply.send(core, ());
            })
            .await;
    }

    /// A role whose disk still has something to end, with the doors shut: an array that is assembled
    /// anew knows nothing of it. Who leaves is used by nobody any more.
    async fn is_unquiet(&self, leaves: Option<usize>) -> Option<usize> {
        let deadline = self.core.reactor.now().plus(QUIET);
        while self.core.reactor.now() < deadline && self.medium.unquiet(None).is_some() {
            self.core.reactor.sleep(QUIET / 50).await;
        }
        self.medium.unquiet(leaves)
    }

    async fn assemble_again(&self) -> Result<(), String> {
        // One that failed has no part in it, and might hang.
        let roles = self.medium.assembled().state().roles;
        let by_role = self.medium.members().into_iter().zip(roles);
        let good = by_role.filter(|(_, record)| record.state != RoleState::Failed);
        let disks: Vec<Named> = good.filter_map(|(disk, _)| disk).collect();
        let mut attempt = 0;
        loop {
            let medium = self.medium.clone();
            self.core
                .call_all(move |core, reply| {
                    if let Some(door) = core.environment.door(&medium) {
                        door.take_out();
                    }
                    reply.send(core, ());
                })
                .await;
            let why = match self.assemble_once(&disks).await {
                Ok(()) => {
                    *self.trouble() = None;
                    return Ok(());
                }
                Err(why) => why,
            };
            attempt += 1;
            if attempt == ATTEMPTS {
                error!(array = self.medium.name, "closed: {why}");
                *self.trouble() = Some(why.clone());
                return Err(why);
            }
            self.core.reactor.sleep(PAUSE).await;
        }
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        let trouble = self.medium.trouble.lock();
        trouble.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn assemble_once(&self, disks: &[Named]) -> Result<(), String> {
        let environment = &self.core.environment;
        let door = environment.door(&self.medium).ok_or("it is closed")?;
        let scratch = door.scratch().ok_or("it is closed")?;
        let opened = open_all(&environment.devices, disks).map_err(|why| why.to_string())?;
        let uuid = self.medium.assembled().uuid();
        let assembly = assemble(opened, Some(uuid), &self.core.reactor, &scratch).await;
        let Assembly { array, report, .. } = assembly.map_err(|why| why.to_string())?;
        let assembled = array.assembled().clone();
        drop(array);
        assembled.keep_promise_of(&self.medium.assembled());
        assembled.set_patience(self.medium.assembled().patience());
        let by_role = report.roles.iter();
        let members: Vec<Option<Named>> = by_role
            .map(|place| place.map(|place| disks[place].clone()))
            .collect();
        self.open_everywhere(&assembled, &members).await?;
        let members = self.with_failed(&assembled, members);
        self.medium.set_assembled(assembled);
        self.medium.set_members(members);
        Ok(())
    }

    /// The disks by role, and of those that failed the last ones.
    fn with_failed(
        &self,
        assembled: &Assembled,
        mut members: Vec<Option<Named>>,
    ) -> Vec<Option<Named>> {
        let (before, had) = (self.medium.assembled().state(), self.medium.members());
        for (disk, record) in members.iter_mut().zip(assembled.state().roles) {
            if disk.is_none() {
                let role = before.role_of(record.member);
                *disk = role.and_then(|role| had.get(role).cloned().flatten());
            }
        }
        members
    }

    async fn open_everywhere(
        &self,
        assembled: &Assembled,
        members: &[Option<Named>],
    ) -> Result<(), String> {
        let (medium, assembled) = (self.medium.clone(), assembled.clone());
        let members = members.to_vec();
        let opened = self.core.call_all(move |core, reply| {
            let environment = &core.environment;
            let open = || {
                let door = environment.door(&medium).ok_or(DiskError::Gone)?;
                let scratch = door.scratch().ok_or(DiskError::Gone)?;
                let disks = members.iter().map(|member| {
                    let open = |member: &Named| environment.devices.open(&member.medium);
                    member.as_ref().map(open).transpose()
                });
                let disks = disks.collect::<Result<Vec<_>, _>>()?;
                let array = Array::open(&assembled, disks, &core.reactor, &scratch)?;
                door.put(array);
                Ok(())
            };
            reply.send(core, open());
        });
        let opened: Result<Vec<()>, DiskError> = opened.await.into_iter().collect();
        opened.map_err(|why| format!("it cannot be opened: {why}"))?;
        Ok(())
    }
}
