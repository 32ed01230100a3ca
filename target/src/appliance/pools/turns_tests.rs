//! Owns the tests of turns: two pools on one home core, one of them on a disk that hangs.
//!
//! The disk hangs because the reactor that polls its engine is not turned.

use corebay_conformance::{Outcome as Ended, TestCore};
use corebay_core::{
    arena::Arena,
    disk::{
        file::{Caching, EngineKind, FileEngine, FileEngineOptions, FileMedium, FileMediumOptions},
        ram::RamMedium,
    },
    mesh::{Port, Wakeups, mesh},
    net::os::OsNetwork,
    units::{BlockSize, CoreId, Time},
};
use corebay_lvol::Owner;
use corebay_target::{
    core::{Core, Message},
    limits::{Limits, MESH_CAPACITY},
    memory::Memory,
};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    future::Future as _,
    path::Path,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tempfile::TempDir;

use super::{
    POOL_MEMORY_BYTES, PoolMemory,
    home::{Home, MachineCore, Opening},
    orders::{self, Order},
    turns::Turns,
    volumes::Outcome,
};
use crate::appliance::{
    environment::{Devices, MachineEnvironment, Medium, PlainMedium},
    keeper::{Event, Keeper},
};

const DISK_BYTES: u64 = 32 << 20;

/// A file as a disk.
fn file(path: &Path) -> Medium {
    let options = FileMediumOptions {
        block_size: BlockSize::B4096,
        bytes: Some(DISK_BYTES),
        create: true,
        caching: Caching::Buffered,
    };
    Medium::Plain(PlainMedium::File(FileMedium::open(path, options).unwrap()))
}

fn opening(name: &str, medium: Medium) -> Opening {
    Opening {
        on: format!("disk of {name}"),
        medium,
        name: name.to_owned(),
        create: true,
        thresholds: (None, None),
        force: false,
        first_volume: None,
        added: true,
    }
}

/// A home core with the pools `quick`, in memory, and `slow`, in a file.
struct World {
    home: Rc<Home>,
    main: Port<Message<MachineEnvironment>>,
    events: Receiver<Event>,
    core: TestCore,
    /// Polls the file's engine.
    disk: TestCore,
    folder: TempDir,
    media: RefCell<Vec<(String, Medium)>>,
}

impl World {
    fn new() -> Self {
        let core = TestCore::single();
        let disk = TestCore::new(0, core.clock());
        let (to_main, events) = channel();
        let mut ports = mesh(2, MESH_CAPACITY, Wakeups::None).unwrap();
        let main = ports.pop().unwrap();
        let own = ports.pop().unwrap();
        let options = FileEngineOptions {
            kind: EngineKind::Threads,
            ..FileEngineOptions::default()
        };
        let engine = FileEngine::start(&disk.reactor, &disk.pool, options).unwrap();
        let environment = MachineEnvironment {
            network: OsNetwork::new().unwrap(),
            devices: Devices::new(engine, core.reactor.clone()),
            keeper: Keeper::new(CoreId(0), to_main),
            arrays: Default::default(),
            pool_cores: Default::default(),
            pools: Default::default(),
            listen: Default::default(),
        };
        let mut arena = Arena::lazy(64 << 20).unwrap();
        let regions = (0..3).map_while(|_| arena.take(POOL_MEMORY_BYTES));
        let pools = PoolMemory(regions.collect());
        let memory = Memory::divide(&mut |bytes| arena.take(bytes), 32 << 20).unwrap();
        let started: MachineCore = Core::start(
            core.reactor.clone(),
            environment,
            Arc::default(),
            Limits::default(),
            memory,
            own,
        );
        let owner = Owner {
            id: [7; 16],
            name: "test".to_owned(),
        };
        let home = Home::start(&started, pools, Default::default(), owner, None);
        let folder = tempfile::tempdir().unwrap();
        let file = file(&folder.path().join("disk"));
        let ram = RamMedium::new(BlockSize::B4096, DISK_BYTES / 4096).unwrap();
        let world = Self {
            home,
            main,
            events,
            core,
            disk,
            folder,
            media: RefCell::default(),
        };
        for (name, medium) in [
            ("quick", Medium::Plain(PlainMedium::Ram(ram))),
            ("slow", file),
        ] {
            let made = world.begin_on("pool.create", name, medium);
            world.let_disk_work(&made).unwrap();
        }
        world
    }

    fn now(&self) -> Time {
        self.core.reactor.now()
    }

    fn begin_on(&self, method: &str, name: &str, medium: Medium) -> Ended<Outcome> {
        self.media
            .borrow_mut()
            .push((name.to_owned(), medium.clone()));
        let opening = opening(name, medium);
        let params = json!({ "pool": name, "disk": opening.on });
        self.begin_by(method, params, Some(opening), Duration::from_secs(60))
    }

    fn begin_by(
        &self,
        method: &str,
        params: Value,
        opening: Option<Opening>,
        time: Duration,
    ) -> Ended<Outcome> {
        let order = Order {
            what: orders::parse(method, &params).unwrap().unwrap(),
            opening,
            stream: None,
            claim: None,
            deadline: self.core.now().plus(time),
        };
        let home = self.home.clone();
        self.core.spawn(async move { home.perform(order).await })
    }

    /// Orders something.
    fn begin(&self, method: &str, params: Value) -> Ended<Outcome> {
        self.begin_by(method, params, None, Duration::from_secs(60))
    }

    /// One turn of the home core and the main thread.
    fn turn(&self) {
        self.core.turn();
        // The main thread keeps whatever it is asked to.
        while let Ok(event) = self.events.try_recv() {
            if let Event::Save(request) = event {
                let keep = move |core: &Rc<Core<MachineEnvironment>>| {
                    core.environment.keeper.answer(request.key, Ok(()));
                };
                self.main.send(CoreId(0), Box::new(keep));
            }
        }
    }

    /// Waits for the end of an order while the disk hangs.
    fn ends(&self, ended: &Ended<Outcome>) -> Outcome {
        self.core.turn_until("the end of an order", || {
            self.turn();
            ended.is_there()
        });
        ended.take()
    }

    /// The same while the disk works.
    fn let_disk_work(&self, ended: &Ended<Outcome>) -> Outcome {
        self.core.turn_until("the end of an order", || {
            self.turn();
            self.disk.turn();
            ended.is_there()
        });
        ended.take()
    }

    #[track_caller]
    fn does(&self, method: &str, params: Value) -> Value {
        let ended = self.begin(method, params);
        self.ends(&ended).unwrap()
    }

    /// Releases all pools; what each is opened from.
    fn release_all(&self) -> Vec<Opening> {
        let pools = self.home.pools.borrow().clone();
        let media = self.media.borrow().clone();
        for pool in pools {
            let released = self.begin("pool.export", json!({ "pool": pool.pool.name() }));
            drop(pool);
            self.let_disk_work(&released).unwrap();
        }
        let all = media.into_iter();
        all.map(|(name, medium)| opening(&name, medium)).collect()
    }

    #[track_caller]
    fn refuses(&self, method: &str, params: Value, because: &str) {
        let ended = self.begin(method, params);
        let why = self.ends(&ended).unwrap_err().message;
        assert!(why.contains(because), "{why}");
    }
}

#[test]
fn a_turn_that_somebody_has_is_not_given_to_another() {
    let turns = Turns::new();
    let context = &mut Context::from_waker(Waker::noop());
    let Poll::Ready(held) = pin!(turns.of("slow")).poll(context) else {
        panic!("nobody has it");
    };
    assert!(pin!(turns.of("quick")).poll(context).is_ready());
    let mut second = pin!(turns.of("slow"));
    assert!(second.as_mut().poll(context).is_pending());
    drop(held);
    assert!(second.as_mut().poll(context).is_ready());
}

#[test]
fn a_disk_that_hangs_holds_up_the_orders_to_its_own_pool_alone() {
    let world = World::new();
    let hangs = world.begin("pool.rename", json!({ "from": "slow", "name": "new" }));
    let second = world.begin(
        "volume.create",
        json!({ "volume": "slow/v", "bytes": 1 << 20 }),
    );
    let late = json!({ "volume": "slow/late", "bytes": 1 << 20 });
    let late = world.begin_by("volume.create", late, None, Duration::from_millis(1));
    let export = json!({ "allow_any_host": true });
    let made = json!({ "volume": "quick/a", "bytes": 1 << 20, "export": export });
    assert_eq!(world.does("volume.create", made)["export"]["shown"], true);
    world.does(
        "volume.resize",
        json!({ "volume": "quick/a", "bytes": 2 << 20 }),
    );
    world.does("snapshot.create", json!({ "snapshots": ["quick/a@s"] }));
    world.does(
        "volume.delete",
        json!({ "volume": "quick/a", "force": true }),
    );
    // The other one is about to have this name.
    let taken = json!({ "from": "quick", "name": "new" });
    world.refuses("pool.rename", taken, "another order");
    world.does("pool.rename", json!({ "from": "quick", "name": "fast" }));
    let why = world.ends(&late).unwrap_err().message;
    assert!(why.contains("nothing was changed"), "{why}");
    assert!(!hangs.is_there() && !second.is_there());
    assert_eq!(world.let_disk_work(&hangs).unwrap()["name"], "new");
    // It waited for a pool that has another name by now.
    let why = world.let_disk_work(&second).unwrap_err().message;
    assert!(why.contains("no pool \"slow\""), "{why}");
    assert!(world.now() > Time(0));
}

#[test]
fn a_namespace_is_promised_to_one_order() {
    let world = World::new();
    let nqn = "nqn.2024-01.com.example:shared";
    let wish =
        |nsid: Option<u32>| json!({ "subsystem": nqn, "nsid": nsid, "allow_any_host": true });
    let create =
        |volume: &str, wish: Value| json!({ "volume": volume, "bytes": 1 << 20, "export": wish });
    let hangs = world.begin("volume.create", create("slow/v", wish(Some(1))));
    for _ in 0..100 {
        world.turn();
    }
    let taken = create("quick/a", wish(Some(1)));
    world.refuses("volume.create", taken, "another namespace 1");
    world.refuses(
        "volume.show",
        json!({ "volume": "quick/a" }),
        "there is no volume",
    );
    let made = world.does("volume.create", create("quick/a", wish(None)));
    assert_eq!(made["export"]["nsid"], 2);
    let made = world.let_disk_work(&hangs).unwrap();
    assert_eq!(
        (&made["export"]["nsid"], &made["export"]["shown"]),
        (&json!(1), &json!(true))
    );
    // What was refused before or taken back is free again.
    world.does(
        "volume.delete",
        json!({ "volume": "quick/a", "force": true }),
    );
    let again = world.does("volume.create", create("quick/b", wish(Some(2))));
    assert_eq!(again["export"]["nsid"], 2);
}

#[test]
fn a_disk_that_hangs_at_the_start_keeps_no_other_pool_from_hosts() {
    let world = World::new();
    let export = json!({ "allow_any_host": true });
    for name in ["quick/v", "slow/v"] {
        let made = json!({ "volume": name, "bytes": 1 << 20, "export": export });
        let made = world.begin("volume.create", made);
        world.let_disk_work(&made).unwrap();
    }
    let mut openings = world.release_all();
    // The one that hangs is the first.
    openings.reverse();
    let home = world.home.clone();
    let wait = Duration::from_secs(1);
    let opened = world
        .core
        .spawn(async move { home.open_all(openings, wait).await });
    world.core.turn_until("the end of the start", || {
        world.turn();
        opened.is_there()
    });
    let kept = opened.take();
    let quick = world.home.find("quick").unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].pool, quick.pool.uuid());
    let pools = world.does("pool.list", json!({}));
    let states = [0, 1].map(|at| pools[at]["state"].clone());
    assert_eq!(states, ["online", "opening"]);
    let why = pools[1]["problem"].as_str().unwrap();
    assert!(why.contains("has not answered"), "{why}");
    world.does(
        "volume.create",
        json!({ "volume": "quick/w", "bytes": 1 << 20 }),
    );
    let of = json!({ "volume": "slow/v", "bytes": 1 << 20 });
    world.refuses("volume.create", of, "has not answered");
    let waits = world.begin("pool.extend", json!({ "pool": "slow" }));
    // It is there once its disk answers, and then the order to it comes; its volume once those are shown that
    // were open in time.
    let shows = || {
        world.turn();
        world.disk.turn();
        let slow = world.home.find("slow");
        slow.map(|pool| !pool.attached.borrow().is_empty())
    };
    world.core.turn_until("the opening", || shows().is_some());
    for _ in 0..1000 {
        assert_eq!(shows(), Some(false));
    }
    world.home.is_shown.set(true);
    world
        .core
        .turn_until("its exports", || shows() == Some(true));
    assert_eq!(world.let_disk_work(&waits).unwrap()["state"], "online");
}

#[test]
fn the_first_of_two_copies_is_opened_at_the_start() {
    let world = World::new();
    let mut openings = world.release_all();
    let disk = world.folder.path().join("disk");
    let copy = world.folder.path().join("copy");
    std::fs::copy(&disk, &copy).unwrap();
    openings.remove(0);
    openings.push(opening("copy", file(&copy)));
    let context = &mut Context::from_waker(Waker::noop());
    let Poll::Ready(held) = pin!(world.home.turns.of("disk of slow")).poll(context) else {
        panic!("nobody has it");
    };
    let home = world.home.clone();
    let wait = Duration::from_secs(20);
    let opened = world
        .core
        .spawn(async move { home.open_all(openings, wait).await });
    for _ in 0..1000 {
        world.turn();
        world.disk.turn();
    }
    // However quick the other one is.
    assert!(world.home.pools.borrow().is_empty());
    drop(held);
    world.core.turn_until("the end of the start", || {
        world.turn();
        world.disk.turn();
        opened.is_there()
    });
    assert_eq!(world.home.find("slow").unwrap().on, "disk of slow");
    let pools = world.does("pool.list", json!({}));
    let why = pools[0]["problem"].as_str().unwrap();
    assert!(why.contains("one of them is a copy"), "{why}");
}

#[test]
fn changes_of_the_configuration_wait_as_one_for_a_pool_that_hangs() {
    let world = World::new();
    let free = || world.core.reactor.executor().free();
    let hangs = world.begin("pool.rename", json!({ "from": "slow", "name": "new" }));
    world.turn();
    let before = free();
    for _ in 0..20 {
        world.home.show_named_anew();
        world.turn();
    }
    assert_eq!(free(), before - 1, "the other pool has seen to all of them");
    world.let_disk_work(&hangs).unwrap();
    world.core.turn_until("the last change", || {
        world.turn();
        free() > before
    });
    world.home.show_named_anew();
    assert!(free() < before + 1, "the next one is seen to again");
}

#[test]
fn a_list_of_many_volumes_lets_others_have_their_turns() {
    let world = World::new();
    for number in 0..100 {
        let made = json!({ "volume": format!("quick/v{number:03}"), "bytes": 1 << 20 });
        world.does("volume.create", made);
    }
    let listed = world.begin("volume.list", json!({ "pool": "quick" }));
    let mut turns = 0;
    while !listed.is_there() {
        world.turn();
        turns += 1;
        assert!(turns < 10_000, "it ends");
    }
    assert!(turns >= 3, "{turns}");
    let all = listed.take().unwrap();
    let names: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["name"].clone())
        .collect();
    assert_eq!(names.len(), 100);
    assert!(names.is_sorted_by_key(ToString::to_string));
    assert_eq!(world.does("export.list", json!({})), json!([]));
}
