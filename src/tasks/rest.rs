//! Asks a backend whether its engine rests: vLLM in development mode can be put to sleep (`/sleep`) and its scheduler paused
//! (`/pause`). Its `/health` is 200 then, and requests wait until somebody wakes it. A server without these paths is asked once
//! each time that it comes back.

use std::time::Duration;

use serde_json::Value;

use super::at;
use forebay_fleet::Backend;
use forebay_fleet::probe::ProbeClient;

/// `{"is_paused":false}` is all that there is.
const MAX_TEXT: usize = 4096;
/// The path, the member of its answer, and what that means.
const QUESTIONS: [(&str, &str, &str); 2] = [
    ("/is_sleeping", "is_sleeping", "its engine sleeps (/sleep); /wake_up ends that"),
    ("/is_paused", "is_paused", "its scheduler is paused (/pause); /resume ends that"),
];

/// The questions that a backend can be asked.
#[derive(Debug, Default)]
pub(super) struct RestQuestions {
    /// It does not answer this one.
    unknown: [bool; QUESTIONS.len()],
}

impl RestQuestions {
    /// Returns why the backend rests, or `Some(None)` where it does not; `None` where it did not say.
    pub(super) async fn ask(
        &mut self,
        client: &ProbeClient,
        backend: &Backend,
        timeout: Duration,
    ) -> Option<Option<&'static str>> {
        let key = backend.key.as_ref().map(|key| key.expose());
        let mut rests = None;
        for (unknown, (path, member, why)) in self.unknown.iter_mut().zip(QUESTIONS) {
            if *unknown {
                continue;
            }
            // A server that is busy or gone is for its `/health` to tell.
            let Ok((status, body)) = client.get(at(&backend.url, path), key, timeout, MAX_TEXT).await else {
                return None;
            };
            match serde_json::from_slice::<Value>(&body).ok().and_then(|answer| answer[member].as_bool()) {
                Some(true) if status.is_success() => rests = Some(why),
                Some(false) if status.is_success() => {}
                _ => *unknown = true,
            }
        }
        Some(rests)
    }
}
