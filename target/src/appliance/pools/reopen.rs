//! Pools whose disks were lost and are there again: each is given up at the loss and imported anew at
//! the return, and hosts find their volumes by the namespaces that they had. So does a pool that has stopped
//! after its disk failed, once its operator orders that (`pool import`).
//!
//! Invariant: nothing that the pool of before has in flight reaches the disk that is there again. Its
//! cores' ways lead to the drive that was lost, which is given up as a whole; or it is waited for.
//!
//! # Order
//! 1. The old pool takes nothing more, and no core gives a way to it any more. Its tasks end, and give
//!    back its memory.
//! 2. The pool is imported, as after a loss of power, and every core gets a way to it.
//! 3. Each namespace is opened anew on every core, in place of the old one, and hosts are told. What was
//!    acknowledged and not flushed may be lost where the disk has a volatile cache, in that or in the pool
//!    that was given up: then each host's next Flush fails.
//!
//! Where step 2 fails, the old pool stays as it is (failed), and the next return begins again.

use std::{rc::Rc, sync::Arc};

use corebay_conf::appliance::Namespace;
use corebay_core::units::Time;
use corebay_lvol::{ImportOptions, PoolContext, VolumeId, error::PoolError};
use tracing::{info, warn};

use super::{
    BUSY_STEP, KnownPool, Opening,
    exports::Attached,
    home::{Home, OpenPool, no_memory},
    orders::PoolDestroy,
};
use crate::appliance::{
    control::RpcError,
    environment::{Floor, Medium},
};

/// How often it is looked whether the memory of a pool that was given up is free.
const MEMORY_STEPS: u32 = 1000;

impl Home {
    /// The pools on these disks are given up.
    pub fn lose(&self, on: &[String]) {
        for pool in self.pools.borrow().iter() {
            if on.contains(&pool.on) {
                warn!(pool = pool.pool.name(), on = pool.on, "its disk was lost");
                pool.is_lost.set(true);
                pool.pool.abandon();
            }
        }
    }

    /// Opens the pool on this disk anew: the disk is there again.
    pub async fn reopen(&self, on: &str, medium: Medium) {
        let _turn = self.turns.of(on).await;
        let known = self
            .book
            .pools()
            .iter()
            .find(|known| known.on == on)
            .cloned();
        let Some(known) = known else { return };
        let old = self.open_on(on);
        let opening = Opening {
            on: on.to_owned(),
            medium,
            name: known.name,
            create: false,
            thresholds: (None, None),
            force: false,
            first_volume: None,
            added: known.added,
        };
        let reopened = match &old {
            Some(old) => self.open_instead(old, &opening).await,
            None => self.open(&opening).await.map(drop),
        };
        match reopened {
            Ok(()) => self.attach_kept_on(on).await,
            Err(problem) => warn!(
                pool = opening.name,
                "its disk is there again, but not the pool: {problem}"
            ),
        }
    }

    /// Forgets a pool that was added and could not be opened; on its disk nothing changes. `why` tells
    /// that it is not available.
    ///
    /// # Errors
    /// Where the configuration names it.
    pub fn forget_closed(&self, name: &str, why: RpcError) -> Result<(), RpcError> {
        let mut known = self.book.pools();
        let is_it = |known: &KnownPool| known.name == name && known.problem.is_some();
        if known.iter().any(|known| is_it(known) && !known.added) {
            let advice = "the configuration names it: take it out of there";
            return Err(RpcError::refused(format!("{}; {advice}", why.message)));
        }
        known.retain(|known| !is_it(known));
        let mut closed = self.closed.borrow_mut();
        closed.retain(|opening| opening.name != name);
        warn!(pool = name, "forgotten: it could not be opened");
        Ok(())
    }

    /// Destroys a pool that could not be opened, where its disk can be written and says that the pool is
    /// this one's. One that is no longer there was destroyed before.
    ///
    /// # Errors
    /// Where that is not said with force, or it cannot be done.
    pub async fn destroy_closed(&self, of: &PoolDestroy, why: RpcError) -> Result<(), RpcError> {
        let refused = |advice: &str| RpcError::refused(format!("{}; {advice}", why.message));
        let Some(opening) = self.closed(Some(&of.pool)) else {
            return Err(refused("`corebay pool export` forgets it"));
        };
        if !of.force {
            return Err(refused("what is in it is not known: say --force"));
        }
        let floor = self.core.environment.open_pool_disk(&opening.medium);
        let floor = floor.map_err(|error| refused(&error.to_string()))?;
        let ours = ImportOptions {
            owner: Some(self.owner.clone()),
            force: false,
        };
        let destroy = async |context: &PoolContext| {
            corebay_lvol::destroy::<Floor>(context, floor, &of.pool, &ours).await
        };
        match self.with_memory(destroy).await.ok_or_else(no_memory)? {
            Ok(()) | Err(PoolError::NotAPool) => {}
            Err(error) => return Err(refused(&error.to_string())),
        }
        if opening.added {
            self.forget_closed(&of.pool, why)?;
        } else {
            let mut known = self.book.pools();
            let mut known = known.iter_mut().filter(|known| known.on == opening.on);
            if let Some(known) = known.next() {
                known.problem = Some("it was destroyed".to_owned());
            }
        }
        info!(pool = of.pool, "destroyed");
        Ok(())
    }

    /// Opens a pool anew that has stopped. Until then its namespaces are there, and take no commands.
    ///
    /// # Errors
    /// Where work is under way on it, its last commands do not end in time, or it cannot be opened.
    pub async fn open_failed_again(
        &self,
        pool: &Rc<OpenPool>,
        opening: &Opening,
        deadline: Time,
    ) -> Result<(), RpcError> {
        self.refuse_at_work(pool, None)?;
        let shown = |attached: &Attached| (attached.subsystem.clone(), attached.nsid);
        let shown: Vec<_> = pool.attached.borrow().values().map(shown).collect();
        for (subsystem, nsid) in shown {
            self.detach_everywhere(&subsystem, nsid).await;
        }
        pool.pool.abandon();
        while !pool.pool.has_ended() {
            if self.core.reactor.now() >= deadline {
                return Err(RpcError::refused(
                    "what it did before it stopped has not ended yet: order it again later",
                ));
            }
            self.core.reactor.sleep(BUSY_STEP).await;
        }
        let opened = self.open_instead(pool, opening).await;
        opened.map_err(RpcError::refused)
    }

    async fn open_instead(&self, old: &Rc<OpenPool>, opening: &Opening) -> Result<(), String> {
        old.pool.abandon();
        self.close_everywhere(old.pool.uuid()).await;
        self.free_memory(old).await?;
        let new = self.open_in(opening, &old.memory).await?;
        self.pools
            .borrow_mut()
            .retain(|pool| !Rc::ptr_eq(pool, old));
        let _showing = self.turns.of_showing().await;
        let attached = std::mem::take(&mut *old.attached.borrow_mut());
        for (id, attached) in attached {
            self.show_again(old, &new, id, &attached).await;
        }
        info!(pool = opening.name, on = opening.on, "opened again");
        Ok(())
    }

    /// Waits until the tasks of a pool that was given up have ended.
    async fn free_memory(&self, old: &Rc<OpenPool>) -> Result<(), String> {
        for _ in 0..MEMORY_STEPS {
            if old.memory.free_bytes() == old.memory.total_bytes() {
                return Ok(());
            }
            self.core.reactor.sleep(BUSY_STEP).await;
        }
        Err("what it did before its disk was lost does not end".to_owned())
    }

    async fn show_again(
        &self,
        old: &Rc<OpenPool>,
        new: &Rc<OpenPool>,
        id: VolumeId,
        attached: &Attached,
    ) {
        let (subsystem, nsid) = (&attached.subsystem, attached.nsid);
        let uuid = |pool: &Rc<OpenPool>| pool.pool.volume(id).map(|record| record.uuid).ok();
        let shown = match uuid(new) == uuid(old) {
            true => {
                if attached.medium.handle.info().volatile_cache {
                    subsystem.writes_may_be_lost(nsid);
                }
                let configured = self.configured(attached);
                let configured = configured.as_ref();
                self.show(new, id, subsystem, nsid, configured).await
            }
            false => Err("the pool does not have it any more".to_owned()),
        };
        if let Err(why) = shown {
            warn!(subsystem = %subsystem.names.nqn, nsid, "not exported any more: {why}");
            subsystem.remove_namespace(nsid);
            self.detach_everywhere(subsystem, nsid).await;
            self.tell(subsystem, nsid);
        }
    }

    /// What the configuration says of a namespace, where it does.
    fn configured(&self, attached: &Attached) -> Option<Namespace> {
        let named = self.named.borrow();
        let is_it = |named: &&super::NamedVolume| {
            Arc::ptr_eq(&named.subsystem, &attached.subsystem)
                && named.namespace.nsid == attached.nsid
        };
        let found = named
            .iter()
            .filter(|_| !attached.medium.by_pool)
            .find(is_it);
        found.map(|named| named.namespace.clone())
    }
}
