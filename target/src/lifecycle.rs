//! A controller's way between disabled, ready and failed: Controller Configuration (CC) and Controller
//! Status (CSTS), Base 2.1, 3.1.4.5, 3.1.4.6 and 3.5.
//!
//! Invariants:
//! - Nobody else changes CC or CSTS, and each change is one step under the lock: of a reset, a
//!   shutdown and an enable that overlap, none undoes what another has said.
//! - Between CC.EN falling and the end of the reset the controller takes no commands, though CSTS.RDY
//!   is still set. Where the host sets CC.EN again in that time, the reset's end makes it ready.
//! - A shutdown that a reset or another shutdown has overtaken says nothing when it ends.
//! - From the begin of a shutdown on the controller takes no I/O commands, until a reset, so that no
//!   later write is taken for one that the shutdown made safe. (Base 2.1, 3.1.4.6, leaves open what
//!   becomes of such commands.) Admin commands go on: hosts keep the association alive until it ends.
//! - A controller that has failed (CSTS.CFS) becomes ready only by way of a reset that ends.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use corebay_nvme::spec::property::{CC_CSS_ALL, CC_CSS_NVM, Cc, Csts, Shn, Shst};
use tracing::warn;

use crate::subsystem::lock;

/// CC and CSTS of one controller, which begins disabled.
#[derive(Debug, Default)]
pub struct Lifecycle {
    /// What the data path looks at.
    accepts: AtomicBool,
    state: Mutex<State>,
}

/// Names a shutdown among those of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ShutdownId(u64);

/// What a change of CC asks for. Who begins it says how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wanted {
    /// A controller level reset, which ends by [`Lifecycle::reset_ended`] or
    /// [`Lifecycle::reset_failed`].
    pub reset: bool,
    /// A shutdown, which ends by [`Lifecycle::shutdown_ended`].
    pub shutdown: Option<ShutdownId>,
}

#[derive(Debug)]
struct State {
    cc: Cc,
    phase: Phase,
    /// CSTS.RDY as hosts see it.
    ready: bool,
    /// CSTS.CFS.
    failed: bool,
    shutdown_status: Shst,
    last_shutdown: ShutdownId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Disabled,
    Ready,
    Resetting,
}

impl Default for State {
    fn default() -> Self {
        Self {
            cc: Cc(0),
            phase: Phase::Disabled,
            ready: false,
            failed: false,
            shutdown_status: Shst::Normal,
            last_shutdown: ShutdownId::default(),
        }
    }
}

impl Lifecycle {
    /// Controller Configuration (CC).
    #[must_use]
    pub fn cc(&self) -> Cc {
        lock(&self.state).cc
    }

    /// Controller Status (CSTS).
    #[must_use]
    pub fn csts(&self) -> Csts {
        let state = lock(&self.state);
        Csts::default()
            .with_rdy(state.ready)
            .with_cfs(state.failed)
            .with_shst(state.shutdown_status)
    }

    /// True while I/O commands are taken: the controller is ready, no reset is under way, and no
    /// shutdown has begun.
    #[must_use]
    pub fn accepts_io(&self) -> bool {
        self.accepts.load(Ordering::Relaxed)
    }

    /// True while admin commands are taken: the controller is ready, shut down or not, and no reset is
    /// under way.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        lock(&self.state).phase == Phase::Ready
    }

    /// The host sets CC.
    #[must_use]
    pub fn configure(&self, new: Cc) -> Wanted {
        self.step(|state| {
            let old = std::mem::replace(&mut state.cc, new);
            let mut wanted = Wanted::default();
            if old.en() && !new.en() {
                wanted.reset = state.phase != Phase::Resetting;
                state.phase = Phase::Resetting;
                state.next_shutdown(Shst::Normal);
            } else if !old.en() && new.en() && state.phase == Phase::Disabled && !state.failed {
                state.enable();
            }
            if old.shn() != new.shn() && shuts_down(new) {
                wanted.shutdown = Some(state.next_shutdown(Shst::Occurring));
            }
            wanted
        })
    }

    /// The reset has ended: nothing of what was before it executes any more.
    pub fn reset_ended(&self) {
        self.step(|state| {
            state.phase = Phase::Disabled;
            (state.ready, state.failed) = (false, false);
            if state.cc.en() {
                state.enable();
            }
        });
    }

    /// The reset could not end: old commands may still execute.
    pub fn reset_failed(&self) {
        self.step(|state| {
            state.phase = Phase::Disabled;
            state.failed = true;
        });
    }

    /// A shutdown has ended; `flushed` where all that was written is safe.
    pub fn shutdown_ended(&self, shutdown: ShutdownId, flushed: bool) {
        self.step(|state| {
            if state.last_shutdown != shutdown {
                return;
            }
            if flushed {
                state.shutdown_status = Shst::Complete;
            } else {
                state.failed = true;
            }
        });
    }

    fn step<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        let accepts = state.phase == Phase::Ready && state.shutdown_status == Shst::Normal;
        self.accepts.store(accepts, Ordering::Relaxed);
        result
    }
}

impl State {
    fn enable(&mut self) {
        let cc = self.cc;
        let known = cc.css() == CC_CSS_NVM || cc.css() == CC_CSS_ALL;
        if !known || cc.mps() != 0 || cc.ams() != 0 {
            warn!(cc = cc.0, "a host enables what CAP does not offer");
            self.failed = true;
            return;
        }
        self.phase = Phase::Ready;
        self.ready = true;
        if !shuts_down(cc) {
            // What was shut down while it was disabled begins anew.
            self.next_shutdown(Shst::Normal);
        }
    }

    fn next_shutdown(&mut self, status: Shst) -> ShutdownId {
        self.last_shutdown = ShutdownId(self.last_shutdown.0 + 1);
        self.shutdown_status = status;
        self.last_shutdown
    }
}

fn shuts_down(cc: Cc) -> bool {
    matches!(cc.shn(), Shn::Normal | Shn::Abrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENABLED: Cc = Cc(0x0046_0001);
    const DISABLED: Cc = Cc(0x0046_0000);
    const SHUTS_DOWN: Cc = Cc(0x0046_4001);

    fn ready() -> Lifecycle {
        let lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.configure(ENABLED), Wanted::default());
        assert!(lifecycle.accepts_io());
        lifecycle
    }

    #[test]
    fn a_reset_takes_no_commands_and_ends_disabled_or_ready() {
        for again in [false, true] {
            let lifecycle = ready();
            assert!(lifecycle.configure(DISABLED).reset);
            assert!(!lifecycle.accepts_io() && lifecycle.csts().rdy());
            if again {
                assert_eq!(lifecycle.configure(ENABLED), Wanted::default());
                assert!(!lifecycle.accepts_io(), "the reset has not ended");
            }
            lifecycle.reset_ended();
            assert_eq!(lifecycle.csts().rdy(), again);
            assert_eq!(lifecycle.accepts_io(), again);
        }
        let lifecycle = ready();
        assert!(lifecycle.configure(DISABLED).reset);
        assert!(!lifecycle.configure(ENABLED).reset);
        assert!(!lifecycle.configure(DISABLED).reset, "one is under way");
        lifecycle.reset_ended();
        assert_eq!(lifecycle.csts(), Csts::default());
    }

    #[test]
    fn a_shutdown_that_was_overtaken_says_nothing() {
        let lifecycle = ready();
        let first = lifecycle.configure(SHUTS_DOWN).shutdown.unwrap();
        assert_eq!(lifecycle.csts().shst(), Shst::Occurring);
        assert!(lifecycle.configure(DISABLED).reset);
        lifecycle.reset_ended();
        lifecycle.shutdown_ended(first, true);
        assert_eq!(lifecycle.csts(), Csts::default());
        assert_eq!(lifecycle.configure(ENABLED), Wanted::default());
        lifecycle.shutdown_ended(first, false);
        assert!(!lifecycle.csts().cfs());
        // Both at once: the reset does not undo the shutdown's end.
        let both = lifecycle.configure(Cc(SHUTS_DOWN.0 & !1));
        assert!(both.reset);
        lifecycle.shutdown_ended(both.shutdown.unwrap(), true);
        lifecycle.reset_ended();
        assert_eq!(lifecycle.csts(), Csts::default().with_shst(Shst::Complete));
    }

    #[test]
    fn what_is_shut_down_takes_commands_only_after_a_reset() {
        let lifecycle = ready();
        let shutdown = lifecycle.configure(SHUTS_DOWN).shutdown.unwrap();
        assert!(!lifecycle.accepts_io(), "the flush has begun");
        lifecycle.shutdown_ended(shutdown, true);
        assert!(!lifecycle.accepts_io());
        // No reset: it stays shut down.
        let _ = lifecycle.configure(ENABLED);
        assert!(!lifecycle.accepts_io());
        assert!(lifecycle.configure(DISABLED).reset);
        lifecycle.reset_ended();
        let _ = lifecycle.configure(ENABLED);
        assert!(lifecycle.accepts_io());
        // Shut down and disabled by one write.
        let both = lifecycle.configure(Cc(SHUTS_DOWN.0 & !1));
        lifecycle.reset_ended();
        lifecycle.shutdown_ended(both.shutdown.unwrap(), true);
        let _ = lifecycle.configure(ENABLED);
        assert!(lifecycle.accepts_io());
        assert_eq!(lifecycle.csts(), Csts::default().with_rdy(true));
    }

    #[test]
    fn what_has_failed_is_ready_only_after_a_reset() {
        let lifecycle = Lifecycle::default();
        let _ = lifecycle.configure(Cc(ENABLED.0 | 1 << 7));
        assert_eq!(lifecycle.csts(), Csts::default().with_cfs(true));
        assert!(lifecycle.configure(DISABLED).reset);
        lifecycle.reset_failed();
        let _ = lifecycle.configure(ENABLED);
        assert!(lifecycle.csts().cfs() && !lifecycle.accepts_io());
        assert!(lifecycle.configure(DISABLED).reset);
        lifecycle.reset_ended();
        let _ = lifecycle.configure(ENABLED);
        assert_eq!(lifecycle.csts(), Csts::default().with_rdy(true));
    }
}
