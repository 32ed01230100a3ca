//! Who is to be told that acknowledged writes may be lost, as a drive lost its power with them in its volatile
//! cache: by a Flush that fails, once.
//!
//! Invariants:
//! - Each host that is connected when the loss becomes known is told by its next Flush of that namespace;
//!   where none is, whoever flushes next.
//! - A Flush that has nothing to tell of costs one load, and takes no lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use corebay_nvme::spec::nqn::Nqn;

/// Of a subsystem.
#[derive(Debug, Default)]
pub(crate) struct LostWrites {
    any: AtomicBool,
    /// The hosts that have not been told yet, by namespace; an empty set for whoever comes.
    untold: Mutex<BTreeMap<u32, BTreeSet<Nqn>>>,
}

impl LostWrites {
    fn untold(&self) -> MutexGuard<'_, BTreeMap<u32, BTreeSet<Nqn>>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes to this namespace may be lost; these hosts are connected.
    pub(crate) fn note(&self, nsid: u32, hosts: impl Iterator<Item = Nqn>) {
        self.untold().entry(nsid).or_default().extend(hosts);
        self.any.store(true, Ordering::SeqCst);
    }

    /// The namespace is another one from now on.
    pub(crate) fn forget(&self, nsid: u32) {
        let mut untold = self.untold();
        untold.remove(&nsid);
        self.any.store(!untold.is_empty(), Ordering::SeqCst);
    }

    /// True where this host's Flush is to fail, as writes may be lost; once.
    pub(crate) fn tell(&self, nsid: u32, host: &Nqn) -> bool {
        if !self.any.load(Ordering::SeqCst) {
            return false;
        }
        let mut untold = self.untold();
        let Some(hosts) = untold.get_mut(&nsid) else {
            return false;
        };
        let told = hosts.is_empty() || hosts.remove(host);
        if hosts.is_empty() {
            untold.remove(&nsid);
            self.any.store(!untold.is_empty(), Ordering::SeqCst);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Nqn {
        format!("nqn.2024-01.com.example:{name}").parse().unwrap()
    }

    #[test]
    fn each_host_that_was_there_is_told_once() {
        let lost = LostWrites::default();
        assert!(!lost.tell(1, &host("a")));
        lost.note(1, [host("a"), host("b")].into_iter());
        assert!(!lost.tell(2, &host("a")), "another namespace");
        assert!(lost.tell(1, &host("a")));
        assert!(!lost.tell(1, &host("a")), "once");
        assert!(!lost.tell(1, &host("c")), "it came later");
        assert!(lost.tell(1, &host("b")));
        assert!(!lost.tell(1, &host("b")));
        assert!(!lost.any.load(Ordering::SeqCst));
    }

    #[test]
    fn where_nobody_was_there_the_next_one_is_told() {
        let lost = LostWrites::default();
        lost.note(1, std::iter::empty());
        assert!(lost.tell(1, &host("a")) && !lost.tell(1, &host("b")));
        lost.note(1, std::iter::empty());
        lost.forget(1);
        assert!(!lost.tell(1, &host("a")));
    }
}
