//! What is ordered of pools, volumes, snapshots and exports, done on the home core.
//!
//! What is asked for again is answered as it was: an order whose outcome is there already succeeds, one
//! that says something else of what is there is a conflict.

use std::rc::Rc;

use corebay_conf::Size;
use corebay_core::units::Time;
use corebay_lvol::{
    Export, Identity, Rate, Thresholds, VolumeId,
    error::PoolError,
    format::{
        VOLUME_BLOCKS_MAX,
        page::{Kind, VolumeRecord},
    },
};
use serde_json::{Value, json};
use tracing::info;
use uuid::Uuid;

use super::{
    BUSY_STEP, Opening,
    describe::{describe_check, describe_pool, describe_volume},
    exports::subsystem_for,
    home::{BEGUN, Home, OpenPool, kept_exports, refresh},
    orders::{
        Order, PoolDestroy, PoolOn, RateSet, Renamed, SnapshotCreate, VolumeClone, VolumeCreate,
        VolumeDelete, VolumePromote, VolumeResize, VolumeRollback, VolumeSet, What,
    },
    refusals::{already, refusal, refusal_in},
    streams::IMPORTING,
    turns::Promise,
};
use crate::appliance::{control::RpcError, environment::Medium};

/// The longest name.
const NAME_BYTES_MAX: usize = 200;

pub type Outcome = Result<Value, RpcError>;

/// A volume or a snapshot that is there.
pub type Found = (Rc<OpenPool>, VolumeId, VolumeRecord);

impl Home {
    /// Does what is ordered.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn perform(&self, order: Order) -> Outcome {
        let Order {
            what,
            opening,
            stream,
            deadline,
            claim: _claim,
        } = order;
        match what {
            What::PoolList(of) => Ok(json!(self.describe_pools(of.pool.as_deref()))),
            What::PoolStatus(of) => self.pool_status(of.pool.as_deref()),
            What::PoolCheck(of) => {
                let checked = match self.closed(of.pool.as_deref()) {
                    Some(opening) => self.check_closed(&opening).await?,
                    None => {
                        let pool = self.pool_or_only(of.pool.as_deref())?;
                        pool.pool.check().await
                    }
                };
                checked
                    .map(|report| describe_check(&report))
                    .map_err(refusal)
            }
            What::VolumeList(of) => self.list(of.pool.as_deref(), Kind::Volume).await,
            What::SnapshotList(of) => self.list(of.pool.as_deref(), Kind::Snapshot).await,
            What::ExportList(of) => {
                self.listed(of.pool.as_deref())?;
                Ok(json!(self.describe_exports(of.pool.as_deref()).await))
            }
            What::VolumeShow(of) => self.show_volume(&of.volume).await,
            What::WorkList(of) => Ok(self.describe_work(of.pool.as_deref())),
            What::VolumeCancel(of) => self.cancel(&of.volume),
            What::VolumeSend(send) => self.send(&send, stream).await,
            What::VolumeReceive(receive) => self.receive(&receive, stream).await,
            What::VolumeExport(export) => self.write_image(&export, stream).await,
            What::VolumeImport(import) => self.read_image(&import, stream).await,
            What::VolumeInflate(of) => self.inflate(&of.volume).await,
            what => self.change(what, opening, deadline).await,
        }
    }

    /// How a pool is; one that could not be opened says why.
    fn pool_status(&self, name: Option<&str>) -> Outcome {
        match self.pool_or_only(name) {
            Ok(pool) => Ok(describe_pool(&pool)),
            Err(why) => match self.describe_pools(name).as_slice() {
                [only] => Ok(only.clone()),
                _ => Err(why),
            },
        }
    }

    async fn list(&self, pool: Option<&str>, kind: Kind) -> Outcome {
        self.listed(pool)?;
        Ok(json!(self.describe_volumes(pool, kind).await))
    }

    /// Does what changes something, in its turn.
    async fn change(&self, what: What, opening: Option<Opening>, deadline: Time) -> Outcome {
        let _turn = self.turn_of(&what, deadline).await?;
        match what {
            What::PoolCreate(on) => self.create_pool(&on, opening, true).await,
            What::PoolImport(on) => {
                self.open_stopped(&on, opening.as_ref(), deadline).await?;
                self.create_pool(&on, opening, false).await
            }
            What::PoolRename(renamed) => self.rename_pool(&renamed).await,
            What::PoolExport(of) => self.release_pool(&of.pool, deadline).await,
            What::PoolDestroy(of) => self.destroy_pool(&of, deadline).await,
            What::VolumeCreate(create) => self.create_volume(&create).await,
            What::VolumeResize(resize) => self.resize(&resize).await,
            What::VolumeRename(renamed) => self.rename_volume(&renamed).await,
            What::VolumeDelete(delete) => self.delete(&delete, Kind::Volume, deadline).await,
            What::SnapshotDelete(of) => {
                let delete = VolumeDelete {
                    volume: of.snapshot,
                    force: of.force,
                };
                self.delete(&delete, Kind::Snapshot, deadline).await
            }
            What::VolumeClone(clone) => self.clone_volume(&clone).await,
            What::VolumeRollback(back) => self.roll_back(&back).await,
            What::VolumeSet(set) => self.set(&set).await,
            What::SnapshotCreate(create) => self.snapshot(&create).await,
            What::ExportAdd(add) => self.add_export(&add).await,
            What::ExportRemove(remove) => self.remove_export(&remove).await,
            What::PoolExtend(of) => {
                let pool = self.pool(&of.pool)?;
                pool.pool.extend().await.map_err(refusal)?;
                Ok(describe_pool(&pool))
            }
            What::VolumePromote(of) => self.promote(&of).await,
            What::VolumeAbortReceive(of) => self.abort_receive(&of.volume).await,
            _ => Err(RpcError::refused("it changes nothing")),
        }
    }

    /// Gives up a stream that was cut off. Where none was, it was given up before.
    async fn abort_receive(&self, name: &str) -> Outcome {
        let (pool, name) = self.place(name)?;
        let ended =
            |state: &str| Ok(json!({ "pool": pool.pool.name(), "name": name, "state": state }));
        let Some(id) = pool.pool.find(name) else {
            return ended("not there");
        };
        if pool.pool.volume(id).map_err(refusal)?.receiving.is_none() {
            return ended("receiving no stream");
        }
        self.refuse_at_work(&pool, Some(name))?;
        pool.pool.abort_receive(id).await.map_err(refusal)?;
        match pool.pool.find(name) {
            Some(_) => ended("as before the stream"),
            None => ended("deleted: it was made for the stream"),
        }
    }

    fn listed(&self, pool: Option<&str>) -> Result<(), RpcError> {
        pool.map_or(Ok(()), |pool| self.pool(pool).map(drop))
    }

    fn pool(&self, name: &str) -> Result<Rc<OpenPool>, RpcError> {
        self.find(name).ok_or_else(|| {
            let known = self.book.pools();
            let known = known.iter().find(|known| known.name == name);
            match known.and_then(|known| known.problem.as_ref()) {
                Some(problem) => {
                    RpcError::refused(format!("the pool \"{name}\" is not available: {problem}"))
                }
                None => RpcError::missing(format!("there is no pool \"{name}\"")),
            }
        })
    }

    /// The pool and the name within it of `pool/name`; where there is one pool, of `name`.
    pub fn place<'n>(&self, name: &'n str) -> Result<(Rc<OpenPool>, &'n str), RpcError> {
        if let Some((pool, name)) = name.split_once('/') {
            return Ok((self.pool(pool)?, name));
        }
        let only = self.only_pool(|| format!("say which, as in POOL/{name}"))?;
        Ok((only, name))
    }

    /// The pool of this name; without one, the only one there is.
    fn pool_or_only(&self, name: Option<&str>) -> Result<Rc<OpenPool>, RpcError> {
        match name {
            Some(name) => self.pool(name),
            None => self.only_pool(|| "say which".to_owned()),
        }
    }

    fn only_pool(&self, advice: impl Fn() -> String) -> Result<Rc<OpenPool>, RpcError> {
        match self.pools.borrow().as_slice() {
            [one] => Ok(one.clone()),
            [] => match self.book.pools().iter().find_map(|known| {
                let problem = known.problem.as_ref()?;
                Some(format!(
                    "the pool \"{}\" is not available: {problem}",
                    known.name
                ))
            }) {
                Some(why) => Err(RpcError::refused(why)),
                None => Err(RpcError::missing(
                    "there is no pool: `corebay pool create` makes one",
                )),
            },
            _ => {
                let advice = advice();
                let message = format!("there are several pools: {advice}");
                Err(RpcError::params(message))
            }
        }
    }

    /// The volume or snapshot of this name.
    pub fn volume(&self, name: &str) -> Result<Found, RpcError> {
        let (pool, name) = self.place(name)?;
        let found = pool.pool.find(name);
        let found = found.and_then(|id| Some((id, pool.pool.volume(id).ok()?)));
        let (id, record) = found.ok_or_else(|| {
            let what = if name.contains('@') {
                "snapshot"
            } else {
                "volume"
            };
            let pool = pool.pool.name();
            RpcError::missing(format!(
                "there is no {what} \"{name}\" in the pool \"{pool}\""
            ))
        })?;
        Ok((pool, id, record))
    }

    /// Where the pool is open and has stopped, it is opened anew.
    async fn open_stopped(
        &self,
        on: &PoolOn,
        opening: Option<&Opening>,
        deadline: Time,
    ) -> Result<(), RpcError> {
        let is_it = |pool: &&Rc<OpenPool>| is_called(pool, &on.pool) && pool.on == on.disk;
        let open = self.pools.borrow().iter().find(is_it).cloned();
        let stopped = open.filter(|pool| pool.pool.status().failed && !pool.is_lost.get());
        let (Some(pool), Some(opening)) = (stopped, opening) else {
            return Ok(());
        };
        let _promised = self.refuse_another(on, opening).await?;
        self.open_failed_again(&pool, opening, deadline).await?;
        self.attach_kept_on(&on.disk).await;
        Ok(())
    }

    async fn create_pool(&self, on: &PoolOn, opening: Option<Opening>, create: bool) -> Outcome {
        // Whatever was there when the order came: another one may have been performed since.
        let _promised = self.turns.promise_name(&on.pool)?;
        let is_it = |pool: &&Rc<OpenPool>| is_called(pool, &on.pool) || pool.on == on.disk;
        let open = self.pools.borrow().iter().find(is_it).cloned();
        if let Some(pool) = open {
            return match (is_called(&pool, &on.pool), pool.on == on.disk) {
                (true, true) => {
                    // Also where it could not be kept before.
                    self.keep_added().await?;
                    self.attach_kept_on(&on.disk).await;
                    set_thresholds(&pool, on).await?;
                    Ok(describe_pool(&pool))
                }
                _ => Err(RpcError::conflict(format!(
                    "the pool \"{}\" lies on \"{}\"",
                    pool.pool.name(),
                    pool.on
                ))),
            };
        }
        let mut opening =
            opening.ok_or_else(|| RpcError::conflict("the disk is used otherwise"))?;
        check_name(&on.pool)?;
        if create {
            thresholds_of(on, Thresholds::default())?;
        }
        opening.create = create;
        let _called = self.refuse_another(on, &opening).await?;
        let pool = self.open(&opening).await.map_err(RpcError::refused)?;
        let (name, uuid) = (pool.pool.name(), Uuid::from_bytes(pool.pool.uuid()));
        if !is_called(&pool, &on.pool) {
            pool.pool.close().await.map_err(refusal)?;
            self.forget(&pool).await;
            return Err(RpcError::conflict(format!(
                "the pool on \"{}\" is \"{name}\" with the UUID {uuid}",
                on.disk
            )));
        }
        self.keep_added().await?;
        self.attach_kept_on(&on.disk).await;
        set_thresholds(&pool, on).await?;
        Ok(describe_pool(&pool))
    }

    /// Looks which pool is on a disk, before anything of it is taken or changed. Gives the promise of its
    /// name, where that is not the one that was ordered.
    async fn refuse_another(
        &self,
        on: &PoolOn,
        opening: &Opening,
    ) -> Result<Option<Promise>, RpcError> {
        // Why none was found is told by who opens it.
        let Some(label) = self.label(opening).await else {
            return Ok(None);
        };
        let uuid = Uuid::from_bytes(label.uuid);
        let there = format!(
            "the pool on \"{}\" is \"{}\" with the UUID {uuid}",
            on.disk, label.name
        );
        if label.name != on.pool && !is_uuid(&on.pool, label.uuid) {
            return Err(RpcError::conflict(there));
        }
        let promised = match label.name == on.pool {
            true => None,
            false => Some(self.turns.promise_name(&label.name)?),
        };
        if let Some(other) = self.find(&label.name).filter(|other| other.on != on.disk) {
            return Err(RpcError::conflict(format!(
                "{there}, and the one on \"{}\" has the same name: `corebay pool rename` gives that \
                 one another",
                other.on
            )));
        }
        if opening.create && !self.is_ours(&label) {
            let advice = "`corebay pool import` opens it";
            return Err(RpcError::conflict(format!("{there}: {advice}")));
        }
        Ok(promised)
    }

    /// Exports what the pool on a disk says, in subsystems that are made where there are none.
    pub async fn attach_kept_on(&self, disk: &str) {
        let Some(pool) = self.open_on(disk) else {
            return;
        };
        let showing = self.turns.of_showing().await;
        let mut ready = Vec::new();
        for kept in kept_exports(&pool) {
            match self.subsystem(&kept.export).await {
                Ok(subsystem) => ready.push((kept, subsystem)),
                Err(why) => tracing::warn!("an export of a pool: {}", why.message),
            }
        }
        self.attach_kept(ready).await;
        drop(showing);
        self.attach_named(&pool).await;
    }

    /// An export's subsystem, made with what is kept of it where there is none. In the turn of showing.
    pub async fn subsystem(
        &self,
        export: &Export,
    ) -> Result<std::sync::Arc<corebay_target::subsystem::Subsystem<Medium>>, RpcError> {
        let made = subsystem_for(&self.core.registry, export).map_err(RpcError::params)?;
        let (subsystem, new) = made;
        if new {
            self.made.borrow_mut().insert(subsystem.id);
            self.core.environment.keeper.restore(&subsystem).await;
            self.tell_discovery();
        }
        Ok(subsystem)
    }

    /// The pools that were added are found again at the next start.
    async fn keep_added(&self) -> Result<(), RpcError> {
        let kept = self
            .core
            .environment
            .keeper
            .keep_pools(self.book.added())
            .await;
        kept.map_err(|_| RpcError::refused("the state file could not be written: see the log"))
    }

    /// Takes all volumes of a pool from hosts.
    async fn detach_all(&self, pool: &Rc<OpenPool>) {
        let ids: Vec<VolumeId> = pool.attached.borrow().keys().copied().collect();
        for id in ids {
            self.detach(pool, id).await;
        }
    }

    /// Waits until the last commands of hosts have ended, as long as that may take.
    async fn once_free<T, F>(&self, deadline: Time, attempt: impl Fn() -> F) -> Result<T, RpcError>
    where
        F: Future<Output = Result<T, PoolError>>,
    {
        loop {
            match attempt().await {
                Err(PoolError::Busy) if self.core.reactor.now() < deadline => {
                    self.core.reactor.sleep(BUSY_STEP).await;
                }
                ended => return ended.map_err(refusal),
            }
        }
    }

    /// Hosts get back what was not let go after all.
    async fn or_attach_again<T>(
        &self,
        pool: &OpenPool,
        ended: Result<T, RpcError>,
    ) -> Result<T, RpcError> {
        if ended.is_err() {
            self.attach_kept_on(&pool.on).await;
        }
        ended
    }

    fn is_known(&self, name: &str) -> bool {
        self.book.pools().iter().any(|known| known.name == name)
    }

    async fn release_pool(&self, name: &str, deadline: Time) -> Outcome {
        let pool = match self.pool(name) {
            Ok(pool) => pool,
            Err(why) => {
                let state = match self.is_known(name) {
                    // What could not be opened was not released either: nothing of it is changed.
                    true => {
                        self.forget_closed(name, why)?;
                        "forgotten"
                    }
                    // It was released before, or never there.
                    false => "released",
                };
                self.keep_added().await?;
                return Ok(json!({ "pool": name, "state": state }));
            }
        };
        self.refuse_at_work(&pool, None)?;
        self.detach_all(&pool).await;
        let released = self.once_free(deadline, || pool.pool.release()).await;
        self.or_attach_again(&pool, released).await?;
        self.forget(&pool).await;
        self.keep_added().await?;
        info!(pool = name, "released");
        Ok(json!({ "pool": name, "state": "released" }))
    }

    async fn destroy_pool(&self, of: &PoolDestroy, deadline: Time) -> Outcome {
        let pool = match self.pool(&of.pool) {
            Ok(pool) => pool,
            Err(why) => {
                // Else it was destroyed before, or never there.
                if self.is_known(&of.pool) {
                    self.destroy_closed(of, why).await?;
                }
                self.keep_added().await?;
                return Ok(json!({ "pool": of.pool, "state": "destroyed" }));
            }
        };
        self.refuse_at_work(&pool, None)?;
        let volumes = pool.pool.volumes();
        let alive = volumes
            .iter()
            .filter(|(_, record)| record.kind != Kind::Dying);
        if !of.force && alive.count() > 0 {
            return Err(RpcError::refused(
                "the pool has volumes: delete them, or destroy them with it (--force)",
            ));
        }
        self.detach_all(&pool).await;
        let destroyed = self.once_free(deadline, || pool.pool.destroy(&of.pool));
        self.or_attach_again(&pool, destroyed.await).await?;
        self.forget(&pool).await;
        self.keep_added().await?;
        info!(pool = of.pool, "destroyed");
        Ok(json!({ "pool": of.pool, "state": "destroyed" }))
    }

    async fn rename_pool(&self, renamed: &Renamed) -> Outcome {
        check_name(&renamed.name)?;
        let before = self.pool(&renamed.from);
        if before.is_err()
            && let Ok(pool) = self.pool(&renamed.name)
        {
            // It was renamed before.
            self.keep_added().await?;
            return Ok(describe_pool(&pool));
        }
        let pool = before?;
        let _promised = self.turns.promise_name(&renamed.name)?;
        if self.is_pool_named(&pool.pool.name()) {
            return Err(RpcError::refused(
                "the configuration names the pool's volumes: take them out of it first",
            ));
        }
        if self
            .find(&renamed.name)
            .is_some_and(|other| !Rc::ptr_eq(&other, &pool))
        {
            return Err(RpcError::conflict("another pool has that name"));
        }
        pool.pool
            .rename_pool(&renamed.name)
            .await
            .map_err(refusal)?;
        for known in self
            .book
            .pools()
            .iter_mut()
            .filter(|known| known.on == pool.on)
        {
            known.name.clone_from(&renamed.name);
        }
        self.keep_added().await?;
        Ok(describe_pool(&pool))
    }

    async fn create_volume(&self, create: &VolumeCreate) -> Outcome {
        let (pool, name) = self.place(&create.volume)?;
        check_name(name)?;
        let blocks = blocks_of(&pool, create.bytes)?;
        let mut planned = None;
        let id = match pool.pool.find(name) {
            Some(id) => {
                let record = pool.pool.volume(id).map_err(refusal)?;
                let same = record.kind == Kind::Volume
                    && (record.blocks, record.thick) == (blocks, create.thick);
                if !same {
                    return Err(already(&pool, &record));
                }
                id
            }
            None => {
                let identity = identity(name);
                planned = self.check_wish(&pool, &identity, create.export.as_ref())?;
                let made = pool.pool.create_volume(&identity, blocks, create.thick);
                let wanted = create.thick.then_some(create.bytes);
                made.await
                    .map_err(|error| refusal_in(&pool, wanted, error))?
            }
        };
        self.attach_named(&pool).await;
        self.export_planned(&pool, id, create.export.as_ref(), planned)
            .await
    }

    async fn resize(&self, resize: &VolumeResize) -> Outcome {
        let (pool, id, record) = self.volume(&resize.volume)?;
        let blocks = blocks_of(&pool, resize.bytes)?;
        if blocks < record.blocks && !resize.shrink {
            return Err(RpcError::refused(
                "the volume would become smaller, which hosts may not expect: say so (--shrink)",
            ));
        }
        if blocks != record.blocks {
            let resized = pool.pool.resize(id, blocks, resize.discard).await;
            resized.map_err(|error| match error {
                PoolError::InUse => RpcError::refused(
                    "blocks in use would be cut off: deallocate them, or discard them (--discard)",
                ),
                other => {
                    let size = pool.info.block_size;
                    let more = size.bytes_of(blocks.saturating_sub(record.blocks));
                    refusal_in(&pool, record.thick.then_some(more), other)
                }
            })?;
        }
        self.changed(&pool, id)
    }

    /// Tells hosts that a volume has changed.
    fn changed(&self, pool: &Rc<OpenPool>, id: VolumeId) -> Outcome {
        let record = pool.pool.volume(id).map_err(refusal)?;
        if let Some(attached) = pool.attached.borrow().get(&id) {
            refresh(&attached.medium.live, id, &record, pool);
            self.tell(&attached.subsystem, attached.nsid);
        }
        Ok(describe_volume(pool, id, &record))
    }

    async fn rename_volume(&self, renamed: &Renamed) -> Outcome {
        let (pool, from) = self.place(&renamed.from)?;
        let name = match renamed.name.split_once('/') {
            None => &renamed.name,
            Some((of, name)) if of == pool.pool.name() => name,
            Some((other, _)) => {
                return Err(RpcError::params(format!(
                    "a volume stays in its pool: it is in \"{}\", not in \"{other}\"",
                    pool.pool.name()
                )));
            }
        };
        check_name(name)?;
        if pool.pool.find(from).is_none()
            && let Some(id) = pool.pool.find(name)
        {
            // It was renamed before.
            return self.export_and_describe(&pool, id, None).await;
        }
        let (pool, id, record) = self.volume(&renamed.from)?;
        if self.is_named(&pool.pool.name(), &record.name) {
            return Err(RpcError::refused(
                "the configuration names the volume: take it out of there first",
            ));
        }
        if record.kind == Kind::Snapshot {
            return Err(RpcError::refused(
                "snapshots are called as their volume is: `corebay volume rename` renames both",
            ));
        }
        let snapshots = pool.pool.snapshots_of(id);
        let mut named = snapshots.iter().map(|(_, snapshot)| &snapshot.name);
        if let Some(name) = named.find(|name| self.is_named(&pool.pool.name(), name)) {
            return Err(RpcError::refused(format!(
                "the configuration names the snapshot \"{name}\": take it out of there first"
            )));
        }
        let done = pool.pool.rename(id, name).await;
        done.map_err(|error| match (error, pool.pool.find(name)) {
            (PoolError::Exists, None) => RpcError::conflict(format!(
                "a snapshot \"{}@...\" has the name that one of this volume's would get",
                name
            )),
            (PoolError::BadName, _) => RpcError::params("a snapshot's name would be too long"),
            (other, _) => refusal(other),
        })?;
        self.attach_named(&pool).await;
        self.export_and_describe(&pool, id, None).await
    }

    async fn delete(&self, delete: &VolumeDelete, kind: Kind, deadline: Time) -> Outcome {
        let (pool, name) = self.place(&delete.volume)?;
        let gone = json!({ "pool": pool.pool.name(), "name": name, "state": "deleted" });
        // Also what is not there yet may be under way: an image, a stream.
        self.refuse_at_work(&pool, Some(name))?;
        let Some(id) = pool.pool.find(name) else {
            if kind == Kind::Snapshot && !name.contains('@') {
                let message =
                    format!("\"{name}\" is no snapshot: those are called VOLUME@SNAPSHOT");
                return Err(RpcError::params(message));
            }
            return Ok(gone);
        };
        let record = pool.pool.volume(id).map_err(refusal)?;
        if record.kind != kind {
            return Err(RpcError::params(match kind {
                Kind::Snapshot => "this is a volume: `corebay volume delete`",
                _ => "this is a snapshot: `corebay snapshot delete`",
            }));
        }
        let exported = record.export.clone().is_some() || pool.attached.borrow().contains_key(&id);
        if exported && !delete.force {
            return Err(RpcError::refused(
                "it is exported: `corebay export remove` takes it from hosts, --force does both",
            ));
        }
        self.detach(&pool, id).await;
        let deleted = self.once_free(deadline, || pool.pool.delete(id)).await;
        self.or_attach_again(&pool, deleted).await?;
        info!(pool = pool.pool.name(), volume = name, "deleted");
        Ok(gone)
    }

    async fn clone_volume(&self, clone: &VolumeClone) -> Outcome {
        let (pool, source, _) = self.volume(&clone.source)?;
        let (other, name) = self.place(&clone.volume)?;
        if !Rc::ptr_eq(&pool, &other) {
            return Err(RpcError::params(
                "a clone is in the pool of what it is made of",
            ));
        }
        check_name(name)?;
        let mut planned = None;
        let id = match pool.pool.find(name) {
            Some(id) => {
                let record = pool.pool.volume(id).map_err(refusal)?;
                let origin = pool.pool.origin_of(id);
                if record.kind != Kind::Volume || origin != Some(source) {
                    let mut why = already(&pool, &record);
                    let name = |id: VolumeId| pool.pool.volume(id).map(|record| record.name);
                    if let Ok(asked) = name(source) {
                        why.message += &match origin.map(name) {
                            Some(Ok(of)) => format!(", a clone of \"{of}\" and not of \"{asked}\""),
                            _ => format!(", and no clone of \"{asked}\""),
                        };
                    }
                    return Err(why);
                }
                id
            }
            None => {
                let identity = identity(name);
                planned = self.check_wish(&pool, &identity, clone.export.as_ref())?;
                let made = pool.pool.clone_volume(source, &identity).await;
                made.map_err(|error| refusal_in(&pool, None, error))?
            }
        };
        self.attach_named(&pool).await;
        self.export_planned(&pool, id, clone.export.as_ref(), planned)
            .await
    }

    async fn roll_back(&self, back: &VolumeRollback) -> Outcome {
        let (pool, id, record) = self.volume(&back.volume)?;
        let (other, snapshot, taken) = self.volume(&back.snapshot)?;
        if !Rc::ptr_eq(&pool, &other)
            || pool.pool.origin_of(snapshot) != Some(id)
            || taken.kind != Kind::Snapshot
        {
            let of = pool
                .pool
                .origin_of(snapshot)
                .filter(|_| Rc::ptr_eq(&pool, &other));
            let of = of.and_then(|of| pool.pool.volume(of).ok());
            let instead =
                of.map_or_else(String::new, |of| format!(", but made of \"{}\"", of.name));
            return Err(RpcError::params(format!(
                "\"{}\" is no snapshot of \"{}\"{instead}",
                taken.name, record.name
            )));
        }
        if pool.attached.borrow().contains_key(&id) && !back.force {
            return Err(RpcError::refused(
                "hosts may be using the volume, and would find other content: take it from them \
                 (`corebay export remove`), or say --force",
            ));
        }
        pool.pool.roll_back(id, snapshot).await.map_err(refusal)?;
        self.changed(&pool, id)
    }

    async fn set(&self, set: &VolumeSet) -> Outcome {
        let (pool, id, record) = self.volume(&set.volume)?;
        if record.read_only && set.read_only == Some(false) {
            self.refuse_imaged(id, &pool)?;
        }
        let done = pool.pool.set_flags(id, set.read_only, set.thick).await;
        let size = pool.info.block_size;
        let missing = size.bytes_of(record.blocks.saturating_sub(record.mapped));
        let wanted = (set.thick == Some(true)).then_some(missing);
        done.map_err(|error| refusal_in(&pool, wanted, error))?;
        let mut limits = record.limits;
        for (limit, wanted) in [
            (&mut limits.read_operations, set.limits.read_operations),
            (&mut limits.read_bytes, set.limits.read_bytes),
            (&mut limits.write_operations, set.limits.write_operations),
            (&mut limits.write_bytes, set.limits.write_bytes),
        ] {
            if let Some(RateSet { per_second, burst }) = wanted {
                *limit = Rate { per_second, burst };
            }
        }
        if limits != record.limits {
            let done = pool.pool.set_limits(id, &limits).await;
            done.map_err(refusal)?;
        }
        self.changed(&pool, id)
    }

    /// A clone becomes what its origin was, and the origin a clone.
    async fn promote(&self, of: &VolumePromote) -> Outcome {
        let (pool, id, record) = self.volume(&of.volume)?;
        if record.kind != Kind::Volume {
            return Err(RpcError::params(
                "snapshots are not promoted: clones of them are",
            ));
        }
        // It was promoted before where the snapshot that it was made of is its own by now. Which one that
        // is has to be said where its origin was a clone, too: it comes from where that came from then.
        let promoted = match &of.origin {
            None => !pool.pool.snapshots_of(id).is_empty() && pool.pool.origin_of(id).is_none(),
            Some(origin) => {
                let (other, snapshot, origin) = self.volume(origin)?;
                let is_own = pool.pool.origin_of(snapshot) == Some(id);
                let is_clone = pool.pool.origin_of(id) == Some(snapshot);
                if !Rc::ptr_eq(&pool, &other) || !is_own && !is_clone {
                    return Err(RpcError::conflict(format!(
                        "\"{}\" is no clone of \"{}\"",
                        record.name, origin.name
                    )));
                }
                is_own
            }
        };
        if !promoted {
            pool.pool.promote(id).await.map_err(|error| match error {
                PoolError::WrongKind => RpcError::params("this is no clone of a snapshot"),
                other => refusal(other),
            })?;
        }
        let mut told = self.changed(&pool, id)?;
        told["promoted"] = json!(!promoted);
        Ok(told)
    }

    async fn snapshot(&self, create: &SnapshotCreate) -> Outcome {
        let mut of: Vec<(VolumeId, Identity)> = Vec::new();
        let mut there = Vec::new();
        let mut place: Option<Rc<OpenPool>> = None;
        for name in &create.snapshots {
            let (volume, snapshot) = name.split_once('@').ok_or_else(|| {
                RpcError::params(format!("\"{name}\" is no snapshot: write VOLUME@SNAPSHOT"))
            })?;
            check_name(snapshot)?;
            let (pool, id, record) = self.volume(volume)?;
            if place
                .as_ref()
                .is_some_and(|place| !Rc::ptr_eq(place, &pool))
            {
                return Err(RpcError::params("a group's volumes are in one pool"));
            }
            let full = format!("{}@{snapshot}", record.name);
            match pool.pool.find(&full) {
                Some(known) if pool.pool.origin_of(known) == Some(id) => there.push(known),
                Some(known) => {
                    let known = pool.pool.volume(known).map_err(refusal)?;
                    return Err(already(&pool, &known));
                }
                None => of.push((id, identity(&full))),
            }
            place = Some(pool);
        }
        let pool = place.ok_or_else(|| RpcError::params("no snapshot is named"))?;
        if !there.is_empty() && !of.is_empty() {
            return Err(RpcError::conflict(
                "some of the group's snapshots are there already, and others are not: they would \
                 not be of one point in time",
            ));
        }
        let ids = match of.is_empty() {
            true => there,
            false => {
                let taken = pool.pool.snapshot(&of).await;
                taken.map_err(|error| refusal_in(&pool, None, error))?
            }
        };
        let made = ids.into_iter().filter_map(|id| {
            let record = pool.pool.volume(id).ok()?;
            Some(describe_volume(&pool, id, &record))
        });
        Ok(json!(made.collect::<Vec<_>>()))
    }
}

/// A name, and a UUID that nothing else has.
pub fn identity(name: &str) -> Identity {
    Identity {
        name: name.to_owned(),
        uuid: *Uuid::new_v4().as_bytes(),
    }
}

/// The blocks of a volume of so many bytes.
pub fn blocks_of(pool: &OpenPool, bytes: u64) -> Result<u64, RpcError> {
    let size = pool.info.block_size;
    match bytes.div_ceil(size.bytes() as u64) {
        0 => Err(RpcError::params(
            "a volume of no bytes is none: say its size",
        )),
        blocks if blocks > VOLUME_BLOCKS_MAX => Err(RpcError::params(format!(
            "a volume has at most {} in this pool, and {} were asked for",
            Size::from_bytes(size.bytes_of(VOLUME_BLOCKS_MAX)),
            Size::from_bytes(bytes)
        ))),
        blocks => Ok(blocks),
    }
}

/// Names are words that a shell takes as they are; `/` and `@` have their meaning.
pub fn check_name(name: &str) -> Result<(), RpcError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-:+".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    // What is begun under such a name is deleted where it is begun again.
    if let Some(taken) = [IMPORTING, BEGUN].iter().find(|end| name.ends_with(**end)) {
        return Err(RpcError::params(format!(
            "\"{name}\" is no name for a volume: those that end with {taken} are being made"
        )));
    }
    match begins && name.chars().all(good) && name.len() <= NAME_BYTES_MAX {
        true => Ok(()),
        false => Err(RpcError::params(format!(
            "\"{}\" is no name: letters, digits and . _ - : + are, at most {NAME_BYTES_MAX}",
            name.escape_debug()
        ))),
    }
}

/// The thresholds that a pool is to have which has those `before`.
fn thresholds_of(on: &PoolOn, before: Thresholds) -> Result<Thresholds, RpcError> {
    let wanted = Thresholds {
        warning_percent: on.warn_at.unwrap_or(before.warning_percent),
        critical_percent: on.critical_at.unwrap_or(before.critical_percent),
        ..before
    };
    let (warning, critical) = (wanted.warning_percent, wanted.critical_percent);
    match warning < critical && critical <= 100 {
        true => Ok(wanted),
        false => Err(RpcError::params(format!(
            "a warning at {warning}% has to come before it is urgent, at {critical}%: say --warn-at and \
             --critical-at"
        ))),
    }
}

async fn set_thresholds(pool: &OpenPool, on: &PoolOn) -> Result<(), RpcError> {
    let before = pool.pool.thresholds();
    if (on.warn_at, on.critical_at) == (None, None) {
        return Ok(());
    }
    let wanted = thresholds_of(on, before)?;
    let set = match wanted == before {
        true => Ok(()),
        false => pool.pool.set_thresholds(&wanted).await,
    };
    set.map_err(refusal)
}

/// Whether a pool is the one of this name or UUID.
fn is_called(pool: &OpenPool, name: &str) -> bool {
    pool.pool.name() == name || is_uuid(name, pool.pool.uuid())
}

fn is_uuid(text: &str, uuid: [u8; 16]) -> bool {
    Uuid::parse_str(text).is_ok_and(|parsed| parsed.into_bytes() == uuid)
}
