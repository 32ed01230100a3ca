//! What the appliance keeps in its data folder besides data: its names, and its health counters.
//!
//! `corebay.json` is replaced as a whole (written beside, synced, renamed, the folder synced), so it
//! is always one version or the other. `corebay.lock` keeps a second appliance out of the folder.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use corebay_nvme::spec::nqn::Nqn;
use corebay_target::subsystem::Health;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cli::Failure;

const STATE_FILE: &str = "corebay.json";
const LOCK_FILE: &str = "corebay.lock";
const VERSION: u32 = 1;

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
    /// Starts so far.
    starts: u64,
    /// Stops that were not clean.
    unclean_stops: u64,
    /// Seconds of all runs.
    seconds: u64,
    /// The last run ended cleanly.
    clean: bool,
}

/// The appliance's own state, locked against others.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    kept: Kept,
    seconds_before: u64,
    _lock: File,
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
        fs::create_dir_all(folder).map_err(|error| cannot("make", &error))?;
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
        kept.starts += 1;
        kept.unclean_stops += u64::from(!kept.clean);
        kept.clean = false;
        let seconds_before = kept.seconds;
        let state = Self {
            folder: folder.to_owned(),
            kept,
            seconds_before,
            _lock: lock,
        };
        state.save()?;
        Ok(state)
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

    /// What the health log counts from.
    pub fn health(&self) -> Health {
        Health {
            starts: self.kept.starts,
            unclean_stops: self.kept.unclean_stops,
            seconds_before: self.seconds_before,
        }
    }

    /// Notes how long this run has lasted.
    pub fn ran_for(&mut self, seconds: u64) {
        self.kept.seconds = self.seconds_before + seconds;
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
                starts: 0,
                unclean_stops: 0,
                seconds: 0,
                clean: true,
            });
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if kept.version != VERSION {
        let version = kept.version;
        return Err(wrong(format!(
            "its version is {version}, this corebay knows {VERSION}"
        )));
    }
    Ok(kept)
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
    use super::*;

    #[test]
    fn names_stay_and_a_second_appliance_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::open(folder.path()).unwrap();
        let nqn = state.nqn().unwrap();
        let uuid = state.namespace_uuid(&nqn, "disk-1");
        state.save().unwrap();
        let refused = State::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("another corebay"), "{refused}");
        drop(state);
        let mut again = State::open(folder.path()).unwrap();
        assert_eq!(again.nqn().unwrap(), nqn);
        assert_eq!(again.namespace_uuid(&nqn, "disk-1"), uuid);
        assert_eq!(
            (again.health().starts, again.health().unclean_stops),
            (2, 1)
        );
        again.ends_cleanly();
        again.save().unwrap();
        drop(again);
        assert_eq!(
            State::open(folder.path()).unwrap().health().unclean_stops,
            1
        );
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(STATE_FILE), b"{").unwrap();
        let refused = State::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(STATE_FILE), "{refused}");
    }
}
