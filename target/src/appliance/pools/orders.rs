//! What the control socket asks of pools, parsed; see `docs/adr/0010`.

use corebay_core::units::Time;
use serde::Deserialize;
use serde_json::Value;

use super::{DiskClaim, Opening, streams::Stream};
use crate::appliance::control::RpcError;

/// An order, and until when it may begin.
pub struct Order {
    /// What is to be done.
    pub what: What,
    /// The disk or array that it names, where it has to be opened.
    pub opening: Option<Opening>,
    /// The file or pipe that it reads or writes.
    pub stream: Option<Stream>,
    /// Keeps that disk from arrays until the order has ended.
    pub claim: Option<DiskClaim>,
    /// What has not begun by then does not begin.
    pub deadline: Time,
}

/// Something of this name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfPool {
    /// The pool.
    pub pool: String,
}

/// All, or those of one pool.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The pool.
    pub pool: Option<String>,
}

/// `pool.create`, `pool.import`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolOn {
    /// The pool's name; for an import its UUID will do too.
    pub pool: String,
    /// The disk or array that it lies on.
    pub disk: String,
    /// How full it may be, in percent, before that is told.
    pub warn_at: Option<u8>,
    /// And before it is urgent.
    pub critical_at: Option<u8>,
    /// It is taken from a machine that has not released it.
    #[serde(default)]
    pub force: bool,
}

/// `pool.destroy`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolDestroy {
    /// The pool.
    pub pool: String,
    /// Also where it has volumes.
    #[serde(default)]
    pub force: bool,
}

/// `pool.rename`, `volume.rename`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renamed {
    /// What has the name.
    #[serde(alias = "pool", alias = "volume")]
    pub from: String,
    /// Its name from then on.
    pub name: String,
}

/// How a volume is to be exported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// The subsystem's NQN.
    pub subsystem: Option<String>,
    /// The namespace.
    pub nsid: Option<u32>,
    /// Every host may connect.
    #[serde(default)]
    pub allow_any_host: bool,
    /// Hosts that may.
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// `volume.create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// The new volume.
    pub volume: String,
    /// Its size.
    pub bytes: u64,
    /// All its space is reserved.
    #[serde(default)]
    pub thick: bool,
    /// It is exported, so.
    pub export: Option<Wish>,
}

/// A volume or a snapshot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfVolume {
    /// It.
    pub volume: String,
}

/// `volume.promote`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumePromote {
    /// The clone.
    pub volume: String,
    /// The snapshot that it is a clone of.
    pub origin: Option<String>,
}

/// `volume.resize`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// The volume.
    pub volume: String,
    /// Its size from then on.
    pub bytes: u64,
    /// It may become smaller.
    #[serde(default)]
    pub shrink: bool,
    /// What is cut off may be in use.
    #[serde(default)]
    pub discard: bool,
}

/// `volume.delete`, `volume.rollback`, `export.remove`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeDelete {
    /// The volume.
    pub volume: String,
    /// Also where hosts may be using it.
    #[serde(default)]
    pub force: bool,
}

/// `volume.clone`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeClone {
    /// A volume or a snapshot.
    pub source: String,
    /// The new volume.
    pub volume: String,
    /// It is exported, so.
    pub export: Option<Wish>,
}

/// `volume.rollback`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRollback {
    /// The volume.
    pub volume: String,
    /// The snapshot.
    pub snapshot: String,
    /// Also where hosts may be using it.
    #[serde(default)]
    pub force: bool,
}

/// `volume.set`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSet {
    /// The volume.
    pub volume: String,
    /// Nobody may write it.
    pub read_only: Option<bool>,
    /// All its space is reserved.
    pub thick: Option<bool>,
    /// What hosts may do in a second; what is not said stays.
    #[serde(default)]
    pub limits: LimitsSet,
}

/// Limits that are changed.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsSet {
    /// Read commands.
    pub read_operations: Option<RateSet>,
    /// Bytes that are read.
    pub read_bytes: Option<RateSet>,
    /// Commands that change something.
    pub write_operations: Option<RateSet>,
    /// Bytes that are written.
    pub write_bytes: Option<RateSet>,
}

/// A limit; 0 a second is none.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSet {
    /// So many a second.
    pub per_second: u64,
    /// So many at once after a pause.
    #[serde(default)]
    pub burst: u64,
}

/// `volume.send`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSend {
    /// The snapshot.
    pub snapshot: String,
    /// Only what has changed since this one.
    pub from: Option<String>,
    /// The block that an interrupted stream goes on from.
    #[serde(default)]
    pub start: u64,
    /// The file or pipe that it goes to.
    pub path: String,
}

/// `volume.receive`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeReceive {
    /// The volume.
    pub volume: String,
    /// What the snapshot is called here.
    pub snapshot: Option<String>,
    /// The file or pipe that the stream comes from.
    pub path: String,
}

/// `volume.export`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeExport {
    /// The volume or snapshot.
    pub volume: String,
    /// The file that it goes to.
    pub path: String,
}

/// `volume.import`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeImport {
    /// The new volume.
    pub volume: String,
    /// The file or device that it is made of.
    pub path: String,
    /// It is exported, so.
    pub export: Option<Wish>,
}

/// `snapshot.create`: all at one point in time.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Each `volume@name`.
    pub snapshots: Vec<String>,
}

/// `snapshot.delete`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDelete {
    /// It.
    pub snapshot: String,
    /// Also where hosts may be using it.
    #[serde(default)]
    pub force: bool,
}

/// `export.add`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportAdd {
    /// The volume.
    pub volume: String,
    /// How.
    #[serde(default)]
    pub export: Wish,
}

/// `export.remove`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRemove {
    /// The volume.
    pub volume: String,
    /// Only these hosts lose it; it goes with the last.
    #[serde(default)]
    pub hosts: Vec<String>,
}

macro_rules! orders {
    ($($method:literal => $name:ident($params:ty),)*) => {
        /// What may be ordered, by method.
        pub enum What {
            $(#[doc = $method] $name($params),)*
        }

        /// The order that a method is, if it is one of pools.
        ///
        /// # Errors
        /// Where the parameters are wrong.
        pub fn parse(method: &str, params: &Value) -> Option<Result<What, RpcError>> {
            let mut params = params.clone();
            if let Some(params) = params.as_object_mut() {
                // It is the socket's.
                params.remove("timeout");
            }
            let wrong = |error: serde_json::Error| RpcError::params(error.to_string());
            Some(match method {
                $($method => serde_json::from_value(params).map(What::$name).map_err(wrong),)*
                _ => return None,
            })
        }
    };
}

orders! {
    "pool.list" => PoolList(Listed),
    "pool.status" => PoolStatus(Listed),
    "pool.create" => PoolCreate(PoolOn),
    "pool.import" => PoolImport(PoolOn),
    "pool.extend" => PoolExtend(OfPool),
    "pool.rename" => PoolRename(Renamed),
    "pool.export" => PoolExport(OfPool),
    "pool.destroy" => PoolDestroy(PoolDestroy),
    "pool.check" => PoolCheck(Listed),
    "volume.list" => VolumeList(Listed),
    "volume.show" => VolumeShow(OfVolume),
    "volume.create" => VolumeCreate(VolumeCreate),
    "volume.resize" => VolumeResize(VolumeResize),
    "volume.rename" => VolumeRename(Renamed),
    "volume.delete" => VolumeDelete(VolumeDelete),
    "volume.clone" => VolumeClone(VolumeClone),
    "volume.rollback" => VolumeRollback(VolumeRollback),
    "volume.set" => VolumeSet(VolumeSet),
    "volume.promote" => VolumePromote(VolumePromote),
    "volume.inflate" => VolumeInflate(OfVolume),
    "volume.send" => VolumeSend(VolumeSend),
    "volume.receive" => VolumeReceive(VolumeReceive),
    "volume.abort_receive" => VolumeAbortReceive(OfVolume),
    "volume.export" => VolumeExport(VolumeExport),
    "volume.import" => VolumeImport(VolumeImport),
    "work.list" => WorkList(Listed),
    "volume.cancel" => VolumeCancel(OfVolume),
    "snapshot.create" => SnapshotCreate(SnapshotCreate),
    "snapshot.list" => SnapshotList(Listed),
    "snapshot.delete" => SnapshotDelete(SnapshotDelete),
    "export.add" => ExportAdd(ExportAdd),
    "export.list" => ExportList(Listed),
    "export.remove" => ExportRemove(ExportRemove),
}

/// What an order changes.
pub enum Place<'w> {
    /// The pool on this disk or array, or a new one there.
    Disk(&'w str),
    /// The pool of this name or UUID.
    Pool(&'w str),
    /// The pool that had the first name before, and has the second one then.
    Renamed(&'w str, &'w str),
    /// The pool of this volume or snapshot.
    Volume(&'w str),
    /// No pool.
    None,
}

impl What {
    /// What it changes.
    pub fn place(&self) -> Place<'_> {
        match self {
            Self::PoolCreate(on) | Self::PoolImport(on) => Place::Disk(&on.disk),
            Self::PoolExtend(of) | Self::PoolExport(of) => Place::Pool(&of.pool),
            Self::PoolDestroy(of) => Place::Pool(&of.pool),
            Self::PoolRename(of) => Place::Renamed(&of.from, &of.name),
            Self::VolumeCreate(of) => Place::Volume(&of.volume),
            Self::VolumeResize(of) => Place::Volume(&of.volume),
            Self::VolumeRename(of) => Place::Volume(&of.from),
            Self::VolumeDelete(of) => Place::Volume(&of.volume),
            Self::VolumeClone(of) => Place::Volume(&of.source),
            Self::VolumeRollback(of) => Place::Volume(&of.volume),
            Self::VolumeSet(of) => Place::Volume(&of.volume),
            Self::VolumePromote(of) => Place::Volume(&of.volume),
            Self::VolumeAbortReceive(of) => Place::Volume(&of.volume),
            Self::SnapshotDelete(of) => Place::Volume(&of.snapshot),
            Self::SnapshotCreate(of) => of
                .snapshots
                .first()
                .map_or(Place::None, |first| Place::Volume(first)),
            Self::ExportAdd(of) => Place::Volume(&of.volume),
            Self::ExportRemove(of) => Place::Volume(&of.volume),
            _ => Place::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn methods_and_parameters_are_told_apart() {
        let good = json!({ "volume": "a", "bytes": 4096, "timeout": 5 });
        let Some(Ok(What::VolumeCreate(create))) = parse("volume.create", &good) else {
            panic!("it is right")
        };
        assert_eq!((create.bytes, create.thick), (4096, false));
        for bad in [
            json!({ "volume": "a" }),
            json!({ "volume": "a", "bytes": -1 }),
            json!({ "volume": "a", "bytes": 1, "byte": 1 }),
        ] {
            let refused = parse("volume.create", &bad);
            assert!(matches!(refused, Some(Err(error)) if error.code == -32602));
        }
        assert!(parse("volume.destroy", &good).is_none());
    }
}
