//! Disks beside the members that the configuration lists: those that became members since, and those that
//! are to step in for one. That a spare holds nothing is seen when it is named, not only when it is needed.

use corebay_conf::{Appliance, appliance};
use corebay_core::{buffer::BufferPool, disk::DiskError};
use corebay_raid::{
    create::occupant_of,
    state::{RoleState, Uuid},
    within,
};
use tracing::warn;

use super::{
    arrays::{Finding, Found, LOOK_TIMEOUT, Named, look_at, open_all},
    environment::{Devices, PlainMedium},
    state::State,
    tend::{Tender, clear},
};
use crate::cli::Failure;

impl Finding {
    /// Of a new array: spares that hold something are refused, unless that may be lost.
    pub(super) async fn check_spares(
        &self,
        devices: &Devices,
        pool: &BufferPool,
    ) -> Result<(), Failure> {
        for (name, medium) in &self.spares {
            let Some(medium) = medium else { continue };
            let spare = Named {
                name: name.clone(),
                medium: medium.clone(),
            };
            if self.plan.lose.contains(name) {
                continue;
            }
            if let Err(why) = holds_nothing(&spare, devices, pool).await {
                return Err(Failure::new(
                    format!("array \"{}\" cannot be made: {why}", self.plan.name),
                    format!(
                        "name another spare, or, to lose what it holds, use `corebay array create ... \
                         --lose {name}`"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Once it is made: what spares hold that may be lost is lost.
    pub(super) async fn clear_spares(&self, devices: &Devices) {
        let lost = |(name, _): &&(String, _)| self.plan.lose.contains(name);
        for (name, medium) in self.spares.iter().filter(lost) {
            let Some(medium) = medium.clone() else {
                continue;
            };
            let name = name.clone();
            if let Err(why) = clear(devices, &Named { name, medium }).await {
                warn!("array \"{}\": {why}", self.plan.name);
            }
        }
    }

    /// Of an array that was found: spares that hold something are none, and that is told.
    pub(super) async fn refuse_spares(
        &self,
        found: &mut Found,
        devices: &Devices,
        pool: &BufferPool,
    ) {
        for spare in std::mem::take(&mut found.tending.spares) {
            match holds_nothing(&spare, devices, pool).await {
                Ok(()) => found.tending.spares.push(spare),
                Err(why) => {
                    let array = &self.plan.name;
                    warn!(
                        "array \"{array}\": no spare: {why}; `corebay array spare {array} {0} --lose {0}` \
                         says that it may be lost",
                        spare.name
                    );
                    found.tending.unfit_spares.push(spare.name.clone());
                    found.tending.refused.push((spare, why));
                }
            }
        }
    }
}

impl Finding {
    /// Looks among unused disks for members that the known ones tell of: the process may have ended after a disk
    /// became one, and before that was kept.
    pub(super) async fn look_further(
        &mut self,
        unused: Vec<(String, Option<PlainMedium>)>,
        devices: &Devices,
        pool: &BufferPool,
    ) -> Result<(), Failure> {
        let mut known = Vec::new();
        if unused.is_empty() {
            return Ok(());
        }
        for disk in open_all(devices, &self.there())? {
            known.extend(look_at(&disk, devices, pool).await);
        }
        let Some(newest) = known.iter().max_by_key(|said| said.state.generation) else {
            return Ok(());
        };
        let is_known = |member: Uuid| known.iter().any(|said| said.member == member);
        let mut wanted = newest.state.roles.iter();
        if wanted.all(|role| role.state == RoleState::Failed || is_known(role.member)) {
            return Ok(());
        }
        for (name, medium) in unused {
            if self.others.iter().any(|(other, _)| *other == name) {
                continue;
            }
            let Some(medium) = medium else { continue };
            let disk = Named { name, medium };
            // A disk that nothing needs may be lost.
            let Ok(opened) = devices.open(&disk.medium) else {
                continue;
            };
            let Ok(said) = look_at(&opened, devices, pool).await else {
                continue;
            };
            if said.array == newest.array && newest.state.role_of(said.member).is_some() {
                self.others.push((disk.name, Some(disk.medium)));
            }
        }
        Ok(())
    }
}

async fn holds_nothing(spare: &Named, devices: &Devices, pool: &BufferPool) -> Result<(), String> {
    let name = &spare.name;
    let opened = devices.open(&spare.medium);
    let disk = opened.map_err(|error| format!("the disk \"{name}\" cannot be opened: {error}"))?;
    let looked = within(&devices.reactor, LOOK_TIMEOUT, occupant_of(&disk, pool)).await;
    match looked.unwrap_or(Err(DiskError::TimedOut)) {
        Ok(None) => Ok(()),
        Ok(Some(by)) => Err(format!("the disk \"{name}\" is not free: {by}")),
        Err(error) => Err(format!("the disk \"{name}\": {error}")),
    }
}

impl Tender {
    /// A disk that holds nothing, or may lose it, is a spare from now on.
    pub(super) async fn take_spare(&self, by: Named, lose: bool) -> Result<(), String> {
        self.clear(&by, lose).await?;
        self.is_fit(&by).await?;
        let mut tending = self.medium.tending();
        tending.forget(&by.name);
        tending.spares.push(by);
        Ok(())
    }
}

/// Disks that the configuration does not list for an array, and that became its members since.
pub(super) fn others(
    appliance: &Appliance,
    array: &appliance::Array,
    state: &State,
) -> Vec<appliance::DiskId> {
    let names = state.array_disks(&array.name).iter();
    names
        .filter_map(|name| match appliance.store(name)? {
            appliance::Store::Disk(id) => Some(id),
            _ => None,
        })
        .filter(|&id| is_unused(appliance, id))
        .collect()
}

/// The configuration has no use for a disk.
fn is_unused(appliance: &Appliance, id: appliance::DiskId) -> bool {
    let lists = appliance.arrays().iter();
    let mut lists = lists.flat_map(|array| array.members.iter().chain(&array.spares));
    let subsystems = appliance.subsystems().iter();
    let mut namespaces = subsystems.flat_map(|subsystem| &subsystem.namespaces);
    !lists.any(|listed| *listed == id)
        && !namespaces.any(|namespace| namespace.store == appliance::Store::Disk(id))
}

/// The disks that the configuration has no use for.
pub(super) fn unused(appliance: &Appliance) -> impl Iterator<Item = appliance::DiskId> {
    let disks = appliance.disks().iter();
    let ids = disks.filter_map(|disk| match appliance.store(&disk.name)? {
        appliance::Store::Disk(id) => Some(id),
        _ => None,
    });
    ids.filter(|&id| is_unused(appliance, id))
}

/// Spares that a configured array got while it ran, as long as the configuration has no other use for them.
pub(super) fn spares_since(
    appliance: &Appliance,
    array: &appliance::Array,
    state: &State,
) -> Vec<appliance::DiskId> {
    let names = state.array_spares(&array.name).iter();
    let names = names.filter(|name| !array_lists(appliance, name));
    let disks = names.filter_map(|name| match appliance.store(name)? {
        appliance::Store::Disk(id) => Some(id),
        _ => None,
    });
    disks.collect()
}

/// The configuration lists a disk for an array.
pub fn array_lists(appliance: &Appliance, disk: &str) -> bool {
    let arrays = appliance.arrays().iter();
    let mut lists = arrays.flat_map(|array| array.members.iter().chain(&array.spares));
    lists.any(|id| appliance.disk(*id).name == disk)
}
