//! A machine that is not there: four cores from 0, or as many as asked for, and what files and
//! addresses a test gives it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use corebay_conf::Machine;
use corebay_conf::machine::{AddressState, CoreState, FileIdentity, PathState};

pub struct FakeMachine {
    pub cores: u32,
    /// Those before it are of others'.
    pub first_core: u32,
    pub memory_bytes: u64,
    pub paths: BTreeMap<PathBuf, PathState>,
    pub addresses: Vec<IpAddr>,
}

impl FakeMachine {
    /// 4 cores, core 3 of another's, 8 GiB, and two drives.
    pub fn new() -> FakeMachine {
        let mut machine = FakeMachine {
            cores: 4,
            first_core: 0,
            memory_bytes: 8 << 30,
            paths: BTreeMap::new(),
            addresses: ["0.0.0.0", "::", "127.0.0.1", "::1", "10.0.0.10"]
                .map(|ip| ip.parse().unwrap())
                .to_vec(),
        };
        for folder in ["/", "/dev", "/var/lib/corebay", "/data", "data"] {
            machine.paths.insert(folder.into(), PathState::Folder);
        }
        machine.device("/dev/nvme1n1", 1 << 40, 512, None);
        machine.device("/dev/nvme2n1", 1 << 40, 4096, None);
        machine.device("/dev/sda", 1 << 38, 512, Some("it is mounted on /"));
        machine.device("/dev/odd", (1 << 30) + 512, 512, None);
        machine
            .paths
            .insert("/dev/nvme1".into(), PathState::Other("a character device"));
        machine.file("/data/8GiB.img", 8 << 30);
        machine.file("/data/empty.img", 0);
        machine.file("/data/odd.img", 1000);
        machine.file("/data/ragged.img", 5000);
        machine.paths.insert(
            "/data/secret.img".into(),
            PathState::Unreadable("permission denied".to_owned()),
        );
        machine
    }

    /// As many cores, as much memory, and whatever devices and addresses.
    #[allow(dead_code)]
    pub fn large() -> FakeMachine {
        let mut machine = FakeMachine::new();
        machine.cores = 64;
        machine.memory_bytes = 256 << 30;
        machine.addresses.push("10.0.1.10".parse().unwrap());
        machine.device(
            "/dev/disk/by-id/nvme-SAMSUNG_MZQL23T8HCLS-00A07_S64HNE0R500001",
            1 << 41,
            512,
            None,
        );
        machine.device("/dev/vg0/volume-1", 1 << 36, 512, None);
        machine
    }

    pub fn device(&mut self, path: &str, size_bytes: u64, block_size: u32, used_by: Option<&str>) {
        let identity = FileIdentity(1, self.paths.len() as u64);
        let used_by = used_by.map(str::to_owned);
        self.paths.insert(
            path.into(),
            PathState::BlockDevice {
                size_bytes,
                block_size,
                identity,
                used_by,
            },
        );
    }

    pub fn file(&mut self, path: &str, size_bytes: u64) {
        let identity = FileIdentity(0, self.paths.len() as u64);
        self.paths.insert(
            path.into(),
            PathState::File {
                size_bytes,
                identity,
            },
        );
    }
}

impl Machine for FakeMachine {
    fn core(&self, core: u32) -> CoreState {
        match core {
            3 if self.cores == 4 => CoreState::NotAllowed,
            core if core < self.first_core => CoreState::NotAllowed,
            core if core < self.cores => CoreState::Usable,
            _ => CoreState::Absent,
        }
    }

    fn first_core(&self) -> Option<u32> {
        Some(self.first_core)
    }

    fn usable_cores(&self) -> String {
        let last = if self.cores == 4 { 2 } else { self.cores - 1 };
        format!("{}-{last}", self.first_core)
    }

    fn path(&self, path: &Path) -> PathState {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let found = self.paths.get(path).cloned();
        found.unwrap_or(match self.paths.get(folder) {
            Some(PathState::Folder) => PathState::Missing,
            _ => PathState::MissingFolder,
        })
    }

    fn address(&self, address: IpAddr) -> AddressState {
        match self.addresses.contains(&address) {
            true => AddressState::Local,
            false => AddressState::NotLocal,
        }
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes)
    }
}
