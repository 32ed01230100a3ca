//! What the appliance keeps in its data folder besides data: its names, the features that hosts have
//! saved, and its health counters.
//!
//! Invariants:
//! - `corebay.json` is replaced as a whole (written beside, synced, renamed, the folder synced), so
//!   it is always one version or the other. `corebay.lock` keeps a second appliance out of the folder.
//! - Only the main thread writes it.
//! - From before the first host can write until a clean end it says that a run is under way, so a
//!   run that ended otherwise is counted by the next one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use corebay_core::units::BlockSize;
use corebay_lvol::Owner;
use corebay_nvme::spec::nqn::Nqn;
use corebay_raid::state::Uuid as ArrayUuid;
use corebay_target::{
    controller::IoCounters,
    feature::FeatureChange,
    subsystem::{Health, Registry, Subsystem},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::kept::{KeptScrub, Made};
use crate::cli::Failure;

const STATE_FILE: &str = "corebay.json";
const LOCK_FILE: &str = "corebay.lock";
const VERSION: u32 = 1;

/// The seconds of an idle appliance that a crash may take from Power On Hours.
const IDLE_SECONDS_MAX: u64 = 3600;

/// The largest state file that is read.
const STATE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    /// The subsystem's name where nothing names it.
    nqn: String,
    /// UUIDs of namespaces that were given none, by subsystem NQN and disk.
    namespaces: BTreeMap<String, Uuid>,
    /// What NVMe drives know this appliance by.
    #[serde(default)]
    host_identifier: Option<Uuid>,
    /// Starts so far.
    starts: u64,
    /// Stops that were not clean.
    unclean_stops: u64,
    /// Seconds of all runs.
    seconds: u64,
    /// The last run ended cleanly.
    clean: bool,
    /// The bytes of a block that files were last served with, by their paths, which begin at the data
    /// folder for files in it: it may be moved.
    #[serde(default)]
    block_sizes: BTreeMap<String, u32>,
    /// The pools that were added while the process ran: the disk or array of each, and its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pools: BTreeMap<String, String>,
    /// Of each subsystem, by its NQN.
    #[serde(default)]
    subsystems: BTreeMap<String, KeptSubsystem>,
    /// The arrays that were made while the appliance ran, by name.
    #[serde(default)]
    arrays: BTreeMap<String, Made>,
    /// The disks that were the members last of arrays that the configuration names.
    #[serde(default)]
    array_disks: BTreeMap<String, Vec<String>>,
    /// The spares of arrays that the configuration names, where they ever changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    array_spares: BTreeMap<String, Vec<String>>,
    /// Of each array, by its UUID.
    #[serde(default)]
    scrubs: BTreeMap<String, KeptScrub>,
}

/// What every version of the file says.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptSubsystem {
    /// The features that hosts have saved.
    features: Vec<KeptFeature>,
    /// What all hosts of all runs have done.
    totals: KeptTotals,
}

/// A Set Features command, as far as it says what to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptFeature {
    fid: u8,
    cdw11: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptTotals {
    read_bytes: u64,
    written_bytes: u64,
    reads: u64,
    writes: u64,
    media_errors: u64,
    busy_nanos: u64,
}

impl KeptTotals {
    fn of(counters: &IoCounters) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            read_bytes: get(&counters.read_bytes),
            written_bytes: get(&counters.written_bytes),
            reads: get(&counters.reads),
            writes: get(&counters.writes),
            media_errors: get(&counters.media_errors),
            busy_nanos: get(&counters.busy_nanos),
        }
    }

    fn counters(self) -> IoCounters {
        IoCounters {
            read_bytes: self.read_bytes.into(),
            written_bytes: self.written_bytes.into(),
            reads: self.reads.into(),
            writes: self.writes.into(),
            media_errors: self.media_errors.into(),
            busy_nanos: self.busy_nanos.into(),
        }
    }
}

/// The appliance's own state, locked against others.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    kept: Kept,
    seconds_before: u64,
    /// The seconds of all runs when a note last said that there is something to save.
    seconds_noted: u64,
    /// Starts, unclean stops and a clean end as they were before this run.
    before: (u64, u64, bool),
    lock: File,
}

impl State {
    /// Opens the data folder, which is made where it is missing.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let cannot = |what: &str, error: &io::Error| {
            Failure::new(
                format!(
                    "cannot {what} the data folder {}: {error}",
                    folder.display()
                ),
                "name a folder that can be written with --data-dir, or data_dir in the file",
            )
        };
        make_folder(folder).map_err(|error| cannot("make", &error))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(LOCK_FILE))
            .map_err(|error| cannot("write to", &error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => Failure::new(
                format!("another corebay uses the data folder {}", folder.display()),
                "stop it, or give this one a folder of its own with --data-dir",
            ),
            other => cannot("lock", &other.into()),
        })?;
        let path = folder.join(STATE_FILE);
        let mut kept = read(&path)?;
        kept.host_identifier.get_or_insert_with(Uuid::new_v4);
        let state = Self {
            folder: folder.to_owned(),
            seconds_before: kept.seconds,
            seconds_noted: kept.seconds,
            before: (kept.starts, kept.unclean_stops, kept.clean),
            kept,
            lock,
        };
        // Now, so that a folder that cannot be written is found out before anything is served.
        state.save()?;
        Ok(state)
    }

    /// What NVMe drives know this appliance by: the same at every start.
    pub fn host_identifier(&self) -> [u8; 16] {
        self.kept.host_identifier.unwrap_or_default().into_bytes()
    }

    /// Notes that a run begins.
    pub fn begins(&mut self) {
        self.kept.starts += 1;
        self.kept.unclean_stops += u64::from(!self.kept.clean);
        self.kept.clean = false;
    }

    /// Takes back that a run began: nothing was served, so nothing could be lost.
    pub fn did_not_begin(&mut self) {
        (self.kept.starts, self.kept.unclean_stops, self.kept.clean) = self.before;
    }

    /// The name of the subsystem where nothing else names it: the same at every start.
    pub fn nqn(&self) -> Result<Nqn, Failure> {
        self.kept.nqn.parse().map_err(|error| {
            Failure::new(
                format!(
                    "{}: the kept NQN is wrong: {error}",
                    self.folder.join(STATE_FILE).display()
                ),
                "restore the file from a copy, or remove it to get new names",
            )
        })
    }

    /// The UUID of a namespace that was given none: made at first, and kept.
    pub fn namespace_uuid(&mut self, subsystem: &Nqn, disk: &str) -> Uuid {
        let key = format!("{subsystem} {disk}");
        *self.kept.namespaces.entry(key).or_insert_with(Uuid::new_v4)
    }

    /// The block size that the file at `path` was last served with: hosts have laid out what they
    /// keep there by it.
    pub fn block_size(&self, path: &Path) -> Option<BlockSize> {
        let bytes = self.kept.block_sizes.get(&self.path_key(path))?;
        BlockSize::from_bytes(u64::from(*bytes))
    }

    /// Notes the block size that the file at `path` is served with.
    pub fn note_block_size(&mut self, path: &Path, block_size: BlockSize) {
        let bytes = block_size.bytes() as u32;
        let key = self.path_key(path);
        self.kept.block_sizes.insert(key, bytes);
    }

    fn path_key(&self, path: &Path) -> String {
        let whole = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let (path, folder) = (whole(path), whole(&self.folder));
        let inside = path.strip_prefix(folder).unwrap_or(&path);
        inside.to_string_lossy().into_owned()
    }

    /// Who the appliance is to pools: the same for as long as its data folder is.
    pub fn owner(&self) -> Owner {
        let uuid = self.kept.nqn.rsplit(':').next();
        let uuid = uuid.and_then(|uuid| uuid.parse().ok());
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        Owner {
            id: *uuid
                .unwrap_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, self.kept.nqn.as_bytes()))
                .as_bytes(),
            name,
        }
    }

    /// The pools that were added while the process ran: what each lies on, and its name.
    pub fn pools(&self) -> &BTreeMap<String, String> {
        &self.kept.pools
    }

    /// Notes the pools that were added, for good.
    pub fn keep_pools(&mut self, pools: BTreeMap<String, String>) -> Result<(), Failure> {
        let before = std::mem::replace(&mut self.kept.pools, pools);
        self.save().inspect_err(|_| self.kept.pools = before)
    }

    /// Keeps an array that was made while the appliance ran, as it is now.
    pub fn keep_array(&mut self, name: &str, made: Made) {
        self.kept.arrays.insert(name.to_owned(), made);
    }

    /// Each start looks for an array of this name that was made while the appliance ran.
    pub fn keeps_array(&self, name: &str) -> bool {
        self.kept.arrays.contains_key(name)
    }

    /// Notes which disks are the members of an array that the configuration names.
    pub fn note_array_disks(&mut self, name: &str, disks: Vec<String>) {
        self.kept.array_disks.insert(name.to_owned(), disks);
    }

    /// The disks that were the members of an array last, where that has ever changed.
    pub fn array_disks(&self, name: &str) -> &[String] {
        self.kept.array_disks.get(name).map_or(&[], Vec::as_slice)
    }

    /// Notes which disks are the spares of an array that the configuration names.
    pub fn note_array_spares(&mut self, name: &str, disks: Vec<String>) {
        self.kept.array_spares.insert(name.to_owned(), disks);
    }

    /// The disks that were the spares of an array last, where that has ever changed.
    pub fn array_spares(&self, name: &str) -> &[String] {
        self.kept.array_spares.get(name).map_or(&[], Vec::as_slice)
    }

    /// Forgets an array that was made while the appliance ran.
    pub fn forget_array(&mut self, name: &str) {
        self.kept.arrays.remove(name);
    }

    /// When an array was scrubbed last; where that is not known, it is reckoned from `now`.
    pub fn scrub_of(&mut self, array: ArrayUuid, now: u64) -> KeptScrub {
        let kept = self.kept.scrubs.entry(array.to_string());
        kept.or_insert_with(|| KeptScrub::none(now)).clone()
    }

    /// Keeps how an array's scrub ended, or how far it is.
    pub fn keep_scrub(&mut self, array: ArrayUuid, scrub: KeptScrub) {
        self.kept.scrubs.insert(array.to_string(), scrub);
    }

    /// What the health log counts from.
    pub fn health(&self) -> Health {
        Health {
            starts: self.kept.starts,
            unclean_stops: self.kept.unclean_stops,
            seconds_before: self.seconds_before,
        }
    }

    /// Gives a new subsystem what is kept of it.
    pub fn restore<M>(&self, subsystem: &Subsystem<M>) {
        let nqn = subsystem.names.nqn.to_string();
        if let Some(kept) = self.kept.subsystems.get(&nqn) {
            for change in changes(&kept.features) {
                subsystem.save_feature(change);
            }
            subsystem.add_past(&kept.totals.counters());
        }
    }

    /// Saves a feature, for good, and only then in the subsystem itself.
    pub fn save_feature<M>(
        &mut self,
        subsystem: &Subsystem<M>,
        change: FeatureChange,
    ) -> Result<(), Failure> {
        let kept = self.of(subsystem);
        let before = kept.features.clone();
        kept.features.retain(|feature| {
            let known = FeatureChange::new(feature.fid, feature.cdw11);
            known.is_some_and(|known| !change.replaces(known))
        });
        kept.features.push(KeptFeature {
            fid: change.fid(),
            cdw11: change.cdw11(),
        });
        if let Err(failure) = self.save() {
            self.of(subsystem).features = before;
            return Err(failure);
        }
        subsystem.save_feature(change);
        Ok(())
    }

    /// Notes how long this run has lasted, and what hosts have done so far; true where that is worth
    /// saving: they have done something since the last time, or it was long ago.
    pub fn note<M>(&mut self, registry: &Registry<M>, seconds: u64) -> bool {
        self.kept.seconds = self.seconds_before + seconds;
        let mut changed = self.kept.seconds >= self.seconds_noted + IDLE_SECONDS_MAX;
        for subsystem in registry.subsystems() {
            let totals = KeptTotals::of(&subsystem.totals());
            let kept = self.of(&subsystem);
            changed |= kept.totals != totals;
            kept.totals = totals;
        }
        if changed {
            self.seconds_noted = self.kept.seconds;
        }
        changed
    }

    fn of<M>(&mut self, subsystem: &Subsystem<M>) -> &mut KeptSubsystem {
        let nqn = subsystem.names.nqn.to_string();
        self.kept.subsystems.entry(nqn).or_default()
    }

    /// Notes that this run ends cleanly.
    pub fn ends_cleanly(&mut self) {
        self.kept.clean = true;
    }

    /// Writes the state down, for good.
    pub fn save(&self) -> Result<(), Failure> {
        let path = self.folder.join(STATE_FILE);
        write(&self.folder, &path, &self.kept).map_err(|error| {
            Failure::new(
                format!("cannot write {}: {error}", path.display()),
                "make room in the data folder, or make it writable",
            )
        })
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Also where a child of this process that is being started still has the file open.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// The arrays that the appliance with this data folder has made while it ran.
pub fn kept_in(folder: &Path) -> Result<BTreeMap<String, Made>, Failure> {
    read(&folder.join(STATE_FILE)).map(|kept| kept.arrays)
}

fn read(path: &Path) -> Result<Kept, Failure> {
    let wrong = |why: String| {
        Failure::new(
            format!("{}: {why}", path.display()),
            "restore the file from a copy; without it hosts see new names for the same disks",
        )
    };
    let bytes = match fs::metadata(path) {
        Ok(metadata) if metadata.len() > STATE_BYTES_MAX => {
            return Err(wrong(format!(
                "{} bytes are no state of corebay's",
                metadata.len()
            )));
        }
        Ok(_) => fs::read(path).map_err(|error| wrong(error.to_string()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Kept {
                version: VERSION,
                nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{}", Uuid::new_v4()),
                namespaces: BTreeMap::new(),
                host_identifier: None,
                starts: 0,
                unclean_stops: 0,
                seconds: 0,
                clean: true,
                block_sizes: BTreeMap::new(),
                pools: BTreeMap::new(),
                subsystems: BTreeMap::new(),
                arrays: BTreeMap::new(),
                array_disks: BTreeMap::new(),
                array_spares: BTreeMap::new(),
                scrubs: BTreeMap::new(),
            });
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    // First, because what another version keeps may have another form.
    let Versioned { version } =
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if version != VERSION {
        return Err(wrong(format!(
            "its version is {version}, this corebay knows {VERSION}"
        )));
    }
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    for (nqn, subsystem) in &kept.subsystems {
        if changes(&subsystem.features).count() != subsystem.features.len() {
            return Err(wrong(format!(
                "a saved feature of {nqn} is none that can be saved"
            )));
        }
    }
    Ok(kept)
}

/// Those that are features and have a value that they can have.
fn changes(features: &[KeptFeature]) -> impl Iterator<Item = FeatureChange> {
    let change = |feature: &KeptFeature| FeatureChange::new(feature.fid, feature.cdw11);
    features.iter().filter_map(change)
}

/// Makes a folder and those above it that are missing. Each new name lasts: the folder that holds it is
/// synced. (What is synced within a new folder is lost with the folder's own name.)
fn make_folder(folder: &Path) -> io::Result<()> {
    for made in missing(folder) {
        match fs::create_dir(made) {
            // Somebody else was faster; the sync is due all the same.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && made.is_dir() => {}
            made => made?,
        }
        File::open(above(made))?.sync_all()?;
    }
    // Says what is wrong where the name is taken by something else.
    fs::create_dir_all(folder)
}

/// The folders on the way to this one that do not exist, the topmost first.
fn missing(folder: &Path) -> Vec<&Path> {
    let mut missing: Vec<_> = folder
        .ancestors()
        .filter(|above| !above.as_os_str().is_empty())
        .take_while(|above| !above.exists())
        .collect();
    missing.reverse();
    missing
}

/// The folder that a path's name is in.
fn above(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn write(folder: &Path, path: &Path, kept: &Kept) -> io::Result<()> {
    // 1. The new version beside the old one: a crash leaves the old one.
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(kept)?)?;
    file.write_all(b"\n")?;
    // 2. Its content is on the medium before its name is, so that the name never shows half of it.
    file.sync_all()?;
    // 3. The rename replaces the old version as one; the folder's sync makes it last.
    fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use corebay_target::subsystem::{Access, SubsystemNames};

    use super::*;

    #[test]
    fn names_stay_and_a_second_appliance_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::open(folder.path()).unwrap();
        let nqn = state.nqn().unwrap();
        let uuid = state.namespace_uuid(&nqn, "disk-1");
        let identifier = state.host_identifier();
        assert_ne!(identifier, [0; 16]);
        state.save().unwrap();
        let refused = State::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("another corebay"), "{refused}");
        drop(state);
        let mut again = State::open(folder.path()).unwrap();
        assert_eq!(again.nqn().unwrap(), nqn);
        assert_eq!(again.namespace_uuid(&nqn, "disk-1"), uuid);
        assert_eq!(again.host_identifier(), identifier);
    }

    #[test]
    fn only_runs_that_served_and_ended_without_a_word_are_unclean() {
        let folder = tempfile::tempdir().unwrap();
        let run = |ends: &dyn Fn(&mut State)| {
            let mut state = State::open(folder.path()).unwrap();
            state.begins();
            state.save().unwrap();
            let health = state.health();
            ends(&mut state);
            state.save().unwrap();
            (health.starts, health.unclean_stops)
        };
        let cleanly: &dyn Fn(&mut State) = &|state| state.ends_cleanly();
        assert_eq!(run(cleanly), (1, 0));
        assert_eq!(run(&|_| {}), (2, 0), "it is killed");
        assert_eq!(run(&|state| state.did_not_begin()), (3, 1), "it is refused");
        assert_eq!(run(cleanly), (3, 1), "counted once");
        assert_eq!(run(cleanly), (4, 1));
        drop(State::open(folder.path()).unwrap());
        assert_eq!(run(cleanly), (5, 1), "it never began");
    }

    fn subsystem() -> Arc<Subsystem<()>> {
        let names = SubsystemNames {
            nqn: "nqn.2026-01.io.corebay:test".parse().unwrap(),
            serial: "1".into(),
            model: "test".into(),
        };
        Registry::default().add_subsystem(names, Access::Any, None)
    }

    #[test]
    fn saved_features_and_totals_outlast_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let change = |fid, cdw11| FeatureChange::new(fid, cdw11).unwrap();
        let mut state = State::open(folder.path()).unwrap();
        let first = subsystem();
        for saved in [
            change(0x06, 0),
            change(0x04, 350),
            change(0x04, 1 << 20 | 270),
            change(0x04, 360),
        ] {
            state.save_feature(&first, saved).unwrap();
        }
        drop(state);
        let state = State::open(folder.path()).unwrap();
        let second = subsystem();
        state.restore(&second);
        let features = second.saved_features();
        assert_eq!(features, first.saved_features());
        assert_eq!(features.temperature_threshold, [360, 270]);
        assert!(!features.volatile_write_cache);
        drop(state);
        let registry = Registry::<()>::default();
        let names = second.names.clone();
        let counted = registry.add_subsystem(names, Access::Any, None);
        let past = IoCounters::default();
        IoCounters::add(&past.writes, 7);
        IoCounters::add(&past.media_errors, 1);
        let mut state = State::open(folder.path()).unwrap();
        counted.add_past(&past);
        assert!(state.note(&registry, 100));
        assert!(!state.note(&registry, 160), "nothing was done since");
        assert!(state.note(&registry, 3700), "an hour is much to lose");
        state.save().unwrap();
        drop(state);
        let state = State::open(folder.path()).unwrap();
        assert_eq!(state.health().seconds_before, 3700);
        let third = subsystem();
        state.restore(&third);
        let kept = KeptTotals::of(&third.totals());
        assert_eq!((kept.writes, kept.media_errors, kept.reads), (7, 1, 0));
        assert_eq!(third.saved_features(), features);
    }

    #[test]
    fn a_file_keeps_its_block_size_also_where_the_folder_moves() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (folder.path().join("here"), folder.path().join("there"));
        let mut state = State::open(&here).unwrap();
        fs::write(here.join("a.img"), []).unwrap();
        let other = folder.path().join("b.img");
        fs::write(&other, []).unwrap();
        state.note_block_size(&here.join("a.img"), BlockSize::B512);
        state.note_block_size(&other, BlockSize::B4096);
        state.save().unwrap();
        drop(state);
        fs::rename(&here, &there).unwrap();
        let state = State::open(&there).unwrap();
        let a = state.block_size(&there.join("a.img"));
        assert_eq!(a, Some(BlockSize::B512));
        assert_eq!(state.block_size(&other), Some(BlockSize::B4096));
        assert_eq!(state.block_size(&there.join("c.img")), None);
    }

    #[test]
    fn what_cannot_be_kept_is_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut state = State::open(&data).unwrap();
        fs::remove_dir_all(&data).unwrap();
        let (subsystem, change) = (subsystem(), FeatureChange::new(0x06, 0).unwrap());
        assert!(state.save_feature(&subsystem, change).is_err());
        assert!(subsystem.saved_features().volatile_write_cache);
        fs::create_dir(&data).unwrap();
        state.save().unwrap();
        let text = fs::read_to_string(data.join(STATE_FILE)).unwrap();
        assert!(!text.contains("cdw11"), "{text}");
    }

    #[test]
    fn a_feature_that_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::open(folder.path()).unwrap();
        let change = FeatureChange::new(0x06, 0).unwrap();
        state.save_feature(&subsystem(), change).unwrap();
        drop(state);
        let path = folder.path().join(STATE_FILE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"fid\": 6", "\"fid\": 7")).unwrap();
        let refused = State::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("saved feature"), "{refused}");
    }

    #[test]
    fn every_folder_that_is_made_has_its_name_synced_in_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let data = path.join("a/b/c");
        let made = missing(&data);
        assert_eq!(made, [path.join("a"), path.join("a/b"), data.clone()]);
        assert_eq!(above(made[0]), path);
        make_folder(&data).unwrap();
        assert!(data.is_dir() && missing(&data).is_empty());
        make_folder(&data).unwrap();
        assert_eq!(missing(Path::new("no-such-folder/b")).len(), 2);
        assert_eq!(above(Path::new("no-such-folder")), Path::new("."));
        fs::write(path.join("file"), b"").unwrap();
        assert!(make_folder(&path.join("file")).is_err());
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(STATE_FILE), b"{").unwrap();
        let refused = State::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(STATE_FILE), "{refused}");
        fs::write(
            folder.path().join(STATE_FILE),
            br#"{"version": 9, "new": 1}"#,
        )
        .unwrap();
        let refused = State::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("its version is 9"), "{refused}");
    }
}
