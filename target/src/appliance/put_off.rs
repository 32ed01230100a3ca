//! What the main thread puts off, as it needs a drive that is not up yet: it is done once the drives are up,
//! or known not to come up. Meanwhile everything else goes on.
//!
//! Invariants:
//! - What is put off has changed nothing: it is done again from its beginning.
//! - A client that waits no longer gets nothing done.

use std::time::Duration;

use corebay_conf::Appliance;

use super::{
    control::{ControlRequest, Reply, RpcError},
    manage::manage,
    operate::operate,
    pools,
    run::Main,
};

/// How often it is looked whether awaited drives are up.
pub const LOOK: Duration = Duration::from_millis(20);

/// What is to be done again.
#[derive(Default)]
pub struct PutOff {
    requests: Vec<ControlRequest>,
    /// The configuration is to be read again.
    reload: bool,
}

impl Main {
    /// A client asks for something.
    pub fn control(&mut self, appliance: &Appliance, request: ControlRequest) {
        // Time has passed since the last event.
        let now = self.clock.now();
        if now >= request.until {
            let _ = request.answer.send(Reply::Now(Err(RpcError::too_late())));
            return;
        }
        let (method, params) = (request.method.as_str(), &request.params);
        let managed = manage(self, appliance, method, params);
        let reply = managed.unwrap_or_else(|| {
            let (media, state) = (&mut self.exports.media, &mut self.state);
            let asked = (method, params);
            pools::order(&self.port, appliance, media, state, request.until, asked)
                .unwrap_or_else(|| operate(appliance, media, state, now, asked))
        });
        match self.exports.media.drives().was_put_off() {
            true => self.put_off.requests.push(request),
            false => drop(request.answer.send(reply)),
        }
    }

    /// Reads the configuration again, as soon as all drives that it names are up or known to be missing;
    /// gives what is in force then, if that has changed.
    pub fn reload(
        &mut self,
        now: &Appliance,
        config: Option<&std::path::Path>,
    ) -> Option<Appliance> {
        let new = self.read_again(now, config);
        self.put_off.reload = self.exports.media.drives().was_put_off();
        new
    }

    /// Does what was put off, where no drive is awaited any more; gives the configuration that is in force
    /// then, if that has changed.
    pub fn go_on(
        &mut self,
        appliance: &Appliance,
        config: Option<&std::path::Path>,
    ) -> Option<Appliance> {
        let drives = self.exports.media.drives();
        if !drives.are_awaited() && self.put_off.is_nothing() || !drives.settle() {
            return None;
        }
        let mut new = None;
        let PutOff { requests, reload } = std::mem::take(&mut self.put_off);
        if reload {
            new = self.reload(appliance, config);
        }
        for request in requests {
            match self.clock.now() < request.until {
                true => self.control(new.as_ref().unwrap_or(appliance), request),
                false => {
                    let late = RpcError::refused("a drive did not come up in time".to_owned());
                    let _ = request.answer.send(Reply::Now(Err(late)));
                }
            }
        }
        if self.put_off.is_nothing() {
            self.exports.media.drives().all_told();
        }
        new
    }
}

impl PutOff {
    fn is_nothing(&self) -> bool {
        self.requests.is_empty() && !self.reload
    }
}
