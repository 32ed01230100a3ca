//! The keeper of a controller: one task on one core that brought it up, watches its health, aborts
//! what hangs, resets it, and gives it up in the end.
//!
//! Order of a reset, each step bounded in time:
//! 1. The drive is quiesced; every core stops at its next turn. (Commands stay in flight.)
//! 2. The controller is disabled; where it does not obey, the function is reset. From here on it
//!    reaches no memory.
//! 3. It is enabled, set up and gets its queues again.
//! 4. The drive runs in a new generation: every core submits again what was in flight, but for what
//!    hung.
//!
//! A device that was pulled out is given up at once: its registers no longer say what they always say,
//! and no wait goes on that they would end. While the keeper waits for an admin command, it looks at
//! them all the same ([`Inner::watched`]); but not while the function is being reset, which it leaves
//! alone, while other drives of the core go on.
//!
//! Giving up: the device loses its way to memory (Bus Master Enable, or it is unplugged), then every
//! core ends what was in flight. Where the way cannot be taken from it, the buffers of commands in
//! flight are never used again.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use corebay_core::{
    dma::{DMA_ALIGN, DmaRegion},
    reactor::Reactor,
    units::Time,
};

use zerocopy::FromZeros;

use super::{
    admin::{Data, Page},
    bring_up::{Bringer, Capabilities, parse},
    device::{DeviceError, DmaWindow, PciDevice, Registers},
    error::{AdminError, BringUpError},
    health::DriveReport,
    info::{ControllerInfo, Refusal},
    options::DriverOptions,
    pointer::{PAGE_BYTES, list_bytes},
    ring::Ring,
    shared::{Drive, DriveParts, Kit, METADATA_BYTES, Phase, Seat, Zeroes},
};
use crate::spec::{
    command::admin::{abort, async_event_request, get_log_page, identify},
    command::{NSID_ALL, SubmissionEntry},
    event::{AsyncEvent, event_type},
    identify::cns,
    log::{ChangedNamespaceList, FirmwareSlotLog, SmartLog, lid},
    property::{self, Cc, Csts},
};

/// The most entries of an I/O queue: the rest of a command identifier is for generations.
const ENTRIES_MAX: u32 = 1024;

/// How often a core's stop is looked for.
const STOP_INTERVAL: Duration = Duration::from_micros(200);

/// How often it is asked whether the reset of a function is over.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// How long a cold pause is after an event request, or a look at a namespace, that ended in an error.
const EVENT_PAUSE: Duration = Duration::from_secs(1);

/// How often a namespace is asked for that answers with errors.
const LOOKS: usize = 3;

/// A controller that was brought up, on the core that keeps it. Clones name the same one.
pub struct Controller<D: PciDevice> {
    inner: Rc<Inner<D>>,
}

impl<D: PciDevice> Clone for Controller<D> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<D: PciDevice> {
    /// Given back once the drive was given up.
    device: RefCell<Option<D>>,
    bringer: Bringer<D::Registers>,
    drive: Arc<Drive<D::Registers>>,
    /// The rings of the I/O queues: entries, and where they lie.
    rings: Vec<(u16, [usize; 2])>,
    resets: RefCell<VecDeque<Time>>,
    /// A reset is under way.
    resetting: Cell<bool>,
    /// The function itself is being reset: nothing of the device may be touched.
    untouchable: Cell<bool>,
    closing: Cell<bool>,
}

impl<D: PciDevice> Controller<D> {
    /// Brings the controller of `device` up. Its queues lie in `memory`, which has
    /// [`DriverOptions::memory_bytes`] and lies in `window`, mapped for the device. `reactor` is that
    /// of the core that keeps the controller from now on.
    ///
    /// # Errors
    /// Says why the controller cannot be used. It is then disabled and has no way to memory.
    pub async fn bring_up(
        mut device: D,
        reactor: &Reactor,
        memory: DmaRegion,
        window: DmaWindow,
        options: DriverOptions,
    ) -> Result<Self, BringUpError> {
        let facts = device.facts();
        match Self::try_bring_up(&mut device, reactor, memory, window, options).await {
            Ok((bringer, drive, rings)) => {
                let inner = Rc::new(Inner {
                    device: RefCell::new(Some(device)),
                    bringer,
                    drive,
                    rings,
                    resets: RefCell::default(),
                    resetting: Cell::new(false),
                    untouchable: Cell::new(false),
                    closing: Cell::new(false),
                });
                let keeper = inner.clone();
                let events = inner.clone();
                let spawned = reactor.spawn(async move { keeper.keep().await }).is_ok()
                    && reactor.spawn(async move { events.events().await }).is_ok();
                match spawned {
                    true => Ok(Self { inner }),
                    false => Err(BringUpError::Memory),
                }
            }
            Err(error) => {
                tracing::warn!(drive = facts.address, %error, "the drive cannot be used");
                if error == BringUpError::StillResetting {
                    return Err(error);
                }
                let registers = device.registers();
                registers.write32(property::CC, 0);
                let _ = device.set_bus_master(false);
                Err(error)
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "the three parts of a controller")]
    async fn try_bring_up(
        device: &mut D,
        reactor: &Reactor,
        mut memory: DmaRegion,
        window: DmaWindow,
        options: DriverOptions,
    ) -> Result<
        (
            Bringer<D::Registers>,
            Arc<Drive<D::Registers>>,
            Vec<(u16, [usize; 2])>,
        ),
        BringUpError,
    > {
        let registers = device.registers();
        let capabilities = Capabilities::read(&registers)?;
        let mut bringer = Bringer::new(
            registers,
            reactor,
            capabilities,
            options.clone(),
            &mut memory,
            window,
        )?;
        // Not before it is idle may it reach memory: it may know queues of whoever had it before.
        if let Err(error) = bringer.disable().await {
            tracing::warn!(drive = device.facts().address, %error, "the function is reset");
            let within = options.function_reset_timeout;
            reset_function(reactor, within, || device.poll_reset()).await?;
            bringer.disable().await?;
        }
        device.set_bus_master(true)?;
        bringer.enable().await?;
        let info = bringer.identify().await?;
        if !info.doorbell_buffer {
            bringer.shadow = None;
        }
        let namespaces = bringer.namespaces(&info).await?;
        let queues = bringer.set_features(&info).await?;
        let mut seats = Vec::new();
        let mut rings = Vec::new();
        for qid in 1..=queues as u16 {
            let kit = new_kit(&bringer, qid, &info, &mut memory)?;
            bringer
                .create_queue(qid, kit.ring.entries(), kit.ring.addresses())
                .await?;
            rings.push((kit.ring.entries(), kit.ring.addresses()));
            seats.push(Seat::new(kit));
        }
        let zeroes = new_zeroes(&mut memory, window)?;
        let drive = Drive::new(DriveParts {
            seats: seats.into(),
            options,
            window,
            zeroes,
            info,
            namespaces,
            address: device.facts().address,
        });
        Ok((bringer, drive, rings))
    }

    /// The drive, for all cores.
    #[must_use]
    pub fn drive(&self) -> &Arc<Drive<D::Registers>> {
        &self.inner.drive
    }

    /// The SMART / Health Information log page.
    ///
    /// # Errors
    /// As the command ended.
    pub async fn smart(&self) -> Result<SmartLog, AdminError> {
        let asked = get_log_page(
            lid::SMART,
            NSID_ALL,
            0,
            (size_of::<SmartLog>() / 4) as u32,
            true,
        );
        Ok(*parse::<SmartLog>(&self.ask(asked).await?))
    }

    async fn ask(&self, entry: SubmissionEntry) -> Result<Page, AdminError> {
        let reply = self.inner.bringer.admin.run(entry, Data::FromDevice);
        reply.await?.page.ok_or(AdminError::Reset)
    }

    /// What the drive says of its health and its firmware.
    ///
    /// # Errors
    /// As a command ended.
    pub async fn report(&self) -> Result<DriveReport, AdminError> {
        let controller = self.ask(identify(cns::CONTROLLER, 0, 0)).await?;
        let smart = self.smart().await?;
        let dwords = (size_of::<FirmwareSlotLog>() / 4) as u32;
        let slots = get_log_page(lid::FIRMWARE_SLOT, NSID_ALL, 0, dwords, true);
        let slots = match self.ask(slots).await {
            Ok(page) => *parse::<FirmwareSlotLog>(&page),
            // A controller that has but one slot may not tell of it.
            Err(AdminError::Status(_)) => FirmwareSlotLog::new_zeroed(),
            Err(error) => return Err(error),
        };
        Ok(DriveReport::parse(parse(&controller), &smart, &slots))
    }

    /// Gives the drive up at once, as the end of a process does: what is in flight on any core ends as
    /// gone at that core's next turn.
    pub fn give_up(&self) {
        self.inner.closing.set(true);
        self.inner.give_up();
    }

    /// Ends the use of the controller: it writes its cache and loses its way to memory. What is in
    /// flight on any core ends as gone; whoever wants it to succeed waits for it before.
    ///
    /// # Errors
    /// Says why the controller may not have written its cache. It is given up all the same. One that was
    /// given up before has nothing to write.
    pub async fn shut_down(&self) -> Result<(), BringUpError> {
        self.inner.close().await
    }
}

/// Has the function reset, while the core does other things.
async fn reset_function(
    reactor: &Reactor,
    within: Duration,
    mut ask: impl FnMut() -> Poll<Result<(), DeviceError>>,
) -> Result<(), BringUpError> {
    let began = reactor.now();
    loop {
        match ask() {
            Poll::Ready(done) => return Ok(done?),
            Poll::Pending if reactor.now().since(began) >= within => {
                return Err(BringUpError::StillResetting);
            }
            Poll::Pending => reactor.sleep(RESET_INTERVAL).await,
        }
    }
}

fn new_kit<R: Registers>(
    bringer: &Bringer<R>,
    qid: u16,
    info: &ControllerInfo,
    memory: &mut DmaRegion,
) -> Result<Kit<R>, BringUpError> {
    let capabilities = &bringer.capabilities;
    let entries = u32::from(bringer.options.entries)
        .min(capabilities.entries_max)
        .clamp(2, ENTRIES_MAX) as u16;
    let slots = usize::from(entries) - 1;
    let list_bytes = list_bytes(info.transfer_bytes_max);
    let mut take = |bytes| memory.split_off(bytes).ok_or(BringUpError::Memory);
    let ring = Ring::new(
        bringer.registers.clone(),
        qid,
        capabilities.dstrd,
        entries,
        take(Ring::<R>::bytes(entries))?,
        bringer.shadow.clone(),
    );
    Ok(Kit {
        ring,
        lists: take(slots * list_bytes)?,
        list_bytes,
        generation: 1,
        slots: vec![0; slots].into(),
    })
}

/// A page of zeroes, and the longest PRP list that names it.
fn new_zeroes(memory: &mut DmaRegion, window: DmaWindow) -> Result<Zeroes, BringUpError> {
    let bytes = 2 * PAGE_BYTES + 2 * METADATA_BYTES;
    let pages = memory.split_off(bytes).ok_or(BringUpError::Memory)?;
    let address = window
        .translate(pages.address(), bytes)
        .ok_or(BringUpError::Memory)?;
    for at in (PAGE_BYTES..2 * PAGE_BYTES).step_by(8) {
        pages.store_u64(at, address);
    }
    Ok(Zeroes {
        page: address,
        list: address + PAGE_BYTES as u64,
        metadata: address + 2 * PAGE_BYTES as u64,
        dropped: address + (2 * PAGE_BYTES + METADATA_BYTES) as u64,
        _memory: pages,
    })
}

impl<D: PciDevice> Inner<D> {
    fn reactor(&self) -> &Reactor {
        &self.bringer.reactor
    }

    /// Watches the controller until it is given up or closed.
    async fn keep(self: Rc<Self>) {
        loop {
            self.reactor()
                .sleep(self.drive.options.health_interval)
                .await;
            if self.closing.get() || self.drive.has_failed() {
                return;
            }
            if !self.is_there() {
                tracing::error!(drive = self.drive.address(), "the drive was pulled out");
                self.give_up();
                return;
            }
            if self.is_wanted_back() {
                tracing::warn!(drive = self.drive.address(), "the drive is wanted back");
                // Why it failed, if it did, is told there.
                let _ = self.close().await;
                return;
            }
            if let Some(why) = self.ailment() {
                tracing::warn!(drive = self.drive.address(), why, "the controller is reset");
                self.resetting.set(true);
                let is_well = || self.untouchable.get() || self.is_there();
                let ended = self.watched(is_well, self.reset()).await;
                self.resetting.set(false);
                if let Err(error) = ended {
                    tracing::error!(drive = self.drive.address(), %error, "the drive is given up");
                    self.give_up();
                    return;
                }
                continue;
            }
            self.watched(|| self.waits_well(), self.abort_what_hangs())
                .await;
        }
    }

    /// Does work that waits for admin commands. Where the controller is no longer well, they end at
    /// once.
    async fn watched<T>(&self, is_well: impl Fn() -> bool, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            let mut pause = pin!(self.reactor().sleep(self.drive.options.health_interval));
            let ended = poll_fn(|context| match work.as_mut().poll(context) {
                Poll::Ready(value) => Poll::Ready(Some(value)),
                Poll::Pending => pause.as_mut().poll(context).map(|()| None),
            });
            match ended.await {
                Some(value) => return value,
                None if is_well() => {}
                None => self.bringer.admin.close(),
            }
        }
    }

    /// False where the answer to an Abort is not worth waiting for.
    fn waits_well(&self) -> bool {
        let csts = Csts(self.bringer.registers.read32(property::CSTS));
        let asked = self.drive.seats.iter().any(Seat::wants_reset);
        self.is_there() && !csts.cfs() && csts.rdy() && !asked
    }

    /// False once the device was pulled out.
    fn is_there(&self) -> bool {
        self.bringer.answers()
    }

    /// Why the controller needs a reset.
    fn ailment(&self) -> Option<&'static str> {
        let csts = self.bringer.registers.read32(property::CSTS);
        // All of them are taken: one reset answers them all.
        let asked = self
            .drive
            .seats
            .iter()
            .filter(|seat| seat.take_reset())
            .count()
            > 0;
        if Csts(csts).cfs() {
            Some("it reports a fatal status")
        } else if !Csts(csts).rdy() {
            Some("it is not ready any more")
        } else if self.bringer.admin.is_broken() {
            Some("an admin command took too long, or its queue is beyond use")
        } else if asked {
            Some(
                "a command could not be aborted, or the controller completed what it was not given",
            )
        } else {
            None
        }
    }

    async fn abort_what_hangs(&self) {
        for (index, seat) in self.drive.seats.iter().enumerate() {
            let Some(cid) = seat.take_abort() else {
                continue;
            };
            let qid = index as u16 + 1;
            tracing::warn!(
                drive = self.drive.address(),
                qid,
                cid,
                "a command takes too long: it is aborted"
            );
            // What comes of it shows in the command's own completion, or in its absence.
            let within = self.drive.options.abort_timeout;
            let aborted = self.bringer.admin.run_within(abort(qid, cid), within).await;
            if let Err(AdminError::Reset | AdminError::TimedOut) = aborted {
                return;
            }
        }
    }

    /// Waits until no core touches its queue.
    async fn quiesce(&self) {
        let generation = self.drive.load_state().generation;
        self.drive.set_state(Phase::Quiesced, generation);
        while self.drive.seats.iter().any(Seat::is_running) {
            self.reactor().sleep(STOP_INTERVAL).await;
        }
    }

    async fn reset(&self) -> Result<(), BringUpError> {
        if !self.device.borrow().as_ref().is_some_and(D::is_present) {
            return Err(BringUpError::NotThere);
        }
        self.remember_reset()?;
        // Enabled by us, a controller that is not lost its power, or was reset by others.
        let was_left_alone = Cc(self.bringer.registers.read32(property::CC)).en();
        self.quiesce().await;
        if let Err(error) = self.bringer.disable().await {
            tracing::warn!(drive = self.drive.address(), %error, "the function is reset");
            self.reset_function().await?;
            self.bringer.disable().await?;
        }
        if !was_left_alone {
            let mut device = self.device.borrow_mut();
            let device = device.as_mut().ok_or(BringUpError::NotThere)?;
            device.set_bus_master(true)?;
        }
        self.bringer.enable().await?;
        let info = self.bringer.identify().await?;
        if !info.works_as(self.drive.info()) {
            return Err(BringUpError::Changed);
        }
        let queues = self.bringer.set_features(&info).await?;
        if (queues as usize) < self.rings.len() {
            return Err(BringUpError::Changed);
        }
        for (index, &(entries, addresses)) in self.rings.iter().enumerate() {
            let qid = index as u16 + 1;
            self.bringer.create_queue(qid, entries, addresses).await?;
        }
        for seat in &self.drive.seats {
            seat.take_reset();
            seat.take_abort();
        }
        self.drive.count_reset();
        if !was_left_alone {
            tracing::warn!(
                drive = self.drive.address(),
                "the drive lost its power for a moment"
            );
            self.drive.lose_unflushed();
        }
        let generation = self.drive.load_state().generation + 1;
        self.drive.set_state(Phase::Running, generation);
        Ok(())
    }

    async fn reset_function(&self) -> Result<(), BringUpError> {
        let ask = || match &mut *self.device.borrow_mut() {
            Some(device) => device.poll_reset(),
            None => Poll::Ready(Err(DeviceError {
                what: "reset the function",
                why: "it was given up".into(),
            })),
        };
        self.untouchable.set(true);
        let within = self.drive.options.function_reset_timeout;
        let done = reset_function(self.reactor(), within, ask).await;
        self.untouchable
            .set(done == Err(BringUpError::StillResetting));
        done?;
        let mut device = self.device.borrow_mut();
        let device = device.as_mut().ok_or(BringUpError::NotThere)?;
        device.set_bus_master(true)?;
        Ok(())
    }

    /// Too many resets in a while are a failure of their own.
    fn remember_reset(&self) -> Result<(), BringUpError> {
        let now = self.reactor().now();
        let options = &self.drive.options;
        let mut resets = self.resets.borrow_mut();
        while resets
            .front()
            .is_some_and(|&at| now.since(at) > options.reset_window)
        {
            resets.pop_front();
        }
        if resets.len() >= options.resets_max {
            return Err(BringUpError::FatalStatus);
        }
        resets.push_back(now);
        Ok(())
    }

    fn is_wanted_back(&self) -> bool {
        let device = self.device.borrow();
        device.as_ref().is_some_and(D::is_wanted_back)
    }

    /// Ends the use of the controller in good order.
    async fn close(&self) -> Result<(), BringUpError> {
        self.closing.set(true);
        while self.resetting.get() {
            self.reactor().sleep(RESET_INTERVAL).await;
        }
        if self.drive.has_failed() {
            return Ok(());
        }
        if !self.is_there() {
            self.give_up();
            return Err(BringUpError::NotThere);
        }
        self.quiesce().await;
        let ended = self.bringer.shut_down(self.drive.info()).await;
        match &ended {
            Ok(()) => self.drive.note_all_flushed(),
            Err(error) => {
                tracing::warn!(drive = self.drive.address(), %error, "the shutdown of the drive failed");
            }
        }
        let _ = self.bringer.disable().await;
        self.give_up();
        ended
    }

    /// The drive ends here. Every core ends what it has in flight at its next turn.
    fn give_up(&self) {
        self.bringer.admin.close();
        let Some(mut device) = self.device.borrow_mut().take() else {
            return;
        };
        // What is gone reaches nothing; to ask its bus for anything would only take time.
        let harmless = !self.untouchable.get() && {
            self.bringer.registers.write32(property::CC, 0);
            let is_gone = !device.is_present();
            is_gone || device.set_bus_master(false).is_ok() || !device.is_present()
        };
        let phase = match harmless {
            true => Phase::Failed,
            false => Phase::FailedUnsafe,
        };
        let generation = self.drive.load_state().generation;
        self.drive.set_state(phase, generation);
    }

    /// Waits for events and deals with them.
    async fn events(self: Rc<Self>) {
        let mut resets = self.drive.resets();
        loop {
            if self.closing.get() || self.drive.has_failed() {
                return;
            }
            let outcome = self.bringer.admin.run_unbounded(async_event_request());
            match outcome.await {
                Ok(reply) => {
                    self.event(AsyncEvent::from_dword(reply.entry.dw0.get()))
                        .await
                }
                // After a reset, and where the controller takes no event requests.
                Err(_) => self.reactor().sleep(EVENT_PAUSE).await,
            }
            if self.drive.resets() != resets {
                resets = self.drive.resets();
                // Events that were on their way are lost.
                self.look_again(&[NSID_ALL]).await;
            }
        }
    }

    async fn event(&self, event: AsyncEvent) {
        let drive = self.drive.address();
        tracing::info!(
            drive,
            kind = event.event_type,
            info = event.info,
            "the controller reports an event"
        );
        if !matches!(
            event.event_type,
            event_type::ERROR | event_type::SMART | event_type::NOTICE
        ) {
            return;
        }
        // Reading the page clears the event.
        let namespaces = event == AsyncEvent::NAMESPACE_CHANGED;
        let dwords = match namespaces {
            true => size_of::<ChangedNamespaceList>() as u32 / 4,
            false => 128,
        };
        let asked = get_log_page(event.lid, NSID_ALL, 0, dwords, false);
        let page = self.bringer.admin.run(asked, Data::FromDevice).await;
        if namespaces {
            let listed = page.ok().and_then(|reply| reply.page);
            // Where it does not say which they are, it may be any.
            let changed: Vec<u32> = listed.map_or_else(
                || vec![NSID_ALL],
                |page| parse::<ChangedNamespaceList>(&page).iter().collect(),
            );
            self.look_again(&changed).await;
        } else if event.event_type == event_type::SMART {
            tracing::warn!(drive, "the drive's health changed: see its SMART log");
        }
    }

    /// Asks again for what may have changed, and some times more where the answer is an error.
    async fn look_again(&self, changed: &[u32]) {
        let mut open = changed.to_vec();
        for _ in 0..LOOKS {
            open = self.look_once(open).await;
            if open.is_empty() || self.closing.get() {
                return;
            }
            self.reactor().sleep(EVENT_PAUSE).await;
        }
    }

    /// Asks for namespaces once; those that must be asked for again.
    async fn look_once(&self, mut nsids: Vec<u32>) -> Vec<u32> {
        let info = self.drive.info();
        if nsids.contains(&NSID_ALL) {
            let Ok(active) = self.bringer.active_namespaces().await else {
                return vec![NSID_ALL];
            };
            let known = self.drive.namespaces();
            nsids = active;
            nsids.extend(known.iter().map(|one| one.nsid));
            nsids.sort_unstable();
            nsids.dedup();
        }
        let mut open = Vec::new();
        for nsid in nsids {
            match self.bringer.namespace(nsid, info).await {
                // What has no blocks is not attached.
                Ok(Some(Err(Refusal::Size(0)))) => self.drive.set_namespace(nsid, None),
                Ok(now) => self.drive.set_namespace(nsid, now),
                // It stays as it is.
                Err(why) if self.bringer.admin.is_broken() => {
                    tracing::debug!(nsid, %why, "all namespaces are looked at after the reset");
                    return Vec::new();
                }
                Err(why) => {
                    tracing::warn!(drive = self.drive.address(), nsid, %why, "a namespace says nothing");
                    open.push(nsid);
                }
            }
        }
        open
    }
}

const _: () = assert!(PAGE_BYTES == DMA_ALIGN);
