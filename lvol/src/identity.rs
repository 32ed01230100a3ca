//! Who volumes are to hosts: their identifiers and exports, kept in the pool so that they move with it.
//!
//! Invariants:
//! - A namespace's number is used once in each subsystem, by volumes that live.
//! - An export belongs to one volume: snapshots and clones begin without one, and without NGUID and
//!   EUI64; a volume that is rolled back keeps its own.

use corebay_core::disk::Disk;

use crate::{
    error::PoolError,
    format::{export::Export, page::VolumeRecord, record::Record},
    manage::{Pool, VolumeId},
};

/// The identifiers of a volume's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NamespaceIds {
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// The NGUID; zeroes are none.
    pub nguid: [u8; 16],
    /// The EUI64; zeroes are none.
    pub eui64: [u8; 8],
}

impl<D: Disk> Pool<D> {
    /// Gives a volume's namespace other identifiers.
    ///
    /// # Errors
    /// Where there is no such volume, or a stream is being received that knows it by its UUID.
    pub async fn set_namespace_ids(
        &self,
        id: VolumeId,
        ids: &NamespaceIds,
    ) -> Result<(), PoolError> {
        let _control = self.control().await?;
        let record = self.volume(id)?;
        let NamespaceIds { uuid, nguid, eui64 } = *ids;
        if (record.uuid, record.nguid, record.eui64) == (uuid, nguid, eui64) {
            return Ok(());
        }
        if record.uuid != uuid {
            self.refuse_base(&record)?;
        }
        let volume = id.0;
        self.change(&[Record::Identity {
            volume,
            uuid,
            nguid,
            eui64,
        }])
        .await
    }

    /// Keeps how hosts reach a volume, or that they do not any more.
    ///
    /// # Errors
    /// [`PoolError::Exists`] where another volume has that number in that subsystem,
    /// [`PoolError::BadExport`] where a part is empty, too long, or named twice.
    pub async fn set_export(&self, id: VolumeId, export: Option<&Export>) -> Result<(), PoolError> {
        let _control = self.control().await?;
        if self.volume(id)?.export.as_ref() == export {
            return Ok(());
        }
        let bytes = match export {
            None => Vec::new(),
            Some(export) => {
                if self.export_taken(id, export) {
                    return Err(PoolError::Exists);
                }
                export.encode().ok_or(PoolError::BadExport)?
            }
        };
        self.change(&[Record::Export {
            volume: id.0,
            bytes,
        }])
        .await
    }

    fn export_taken(&self, id: VolumeId, wanted: &Export) -> bool {
        let state = self.shared.state.borrow();
        let mut of_it = state.volumes.exported_in(&wanted.subsystem);
        of_it.any(|(nsid, other)| nsid == wanted.nsid && other != id.0)
    }

    /// Everything that is exported, in the order of the volumes' numbers.
    #[must_use]
    pub fn exports(&self) -> Vec<(VolumeId, VolumeRecord, Export)> {
        let state = self.shared.state.borrow();
        let mut ids: Vec<u32> = state.volumes.exported().collect();
        ids.sort_unstable();
        let exported = |id| {
            let record = state.volumes.body(id)?;
            Some((VolumeId(id), record.clone(), record.export.clone()?))
        };
        ids.into_iter().filter_map(exported).collect()
    }

    /// The exports in one subsystem, in the order of their namespaces. Only these are looked at: it is asked for
    /// each of many.
    #[must_use]
    pub fn exports_in(&self, subsystem: &str) -> Vec<Export> {
        let state = self.shared.state.borrow();
        let exported = |(_, id)| state.volumes.body(id)?.export.clone();
        let of_it = state.volumes.exported_in(subsystem);
        of_it.filter_map(exported).collect()
    }

    /// A number that nobody has in a subsystem: the lowest.
    #[must_use]
    pub fn free_nsid(&self, subsystem: &str) -> u32 {
        let state = self.shared.state.borrow();
        let mut free = 1;
        for (nsid, _) in state.volumes.exported_in(subsystem) {
            if nsid > free {
                break;
            }
            free = nsid + 1;
        }
        free
    }
}
