//! Sends that are repeated must not be sent twice (protocol §4, *Idempotency*).

use std::mem;

use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;
use wsc_protocol::{ErrorCode, ErrorReply};
use wsc_store::Note;

use super::{Answer, Answered, recent::Recent};
use crate::routing::SendReceipt;

/// The keys of sends within `idempotency.window`, at most `idempotency.max_keys` of them.
#[derive(Default)]
pub(crate) struct Idempotency(Mutex<Recent<Uuid, Send>>);

/// One send that named a key.
struct Send {
    fingerprint: Uuid,
    state: State,
}

enum State {
    /// Its first answer is not known yet; these wait for it.
    Asked(Vec<Answer>),
    Answered(Answered),
}

/// A send with a key, in the form in which it is remembered: hashes, so that every key costs the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyedSend {
    pub(crate) key: Uuid,
    pub(crate) fingerprint: Uuid,
}

impl KeyedSend {
    /// `scope` is who sends, `target` where to, `parts` everything that must be the same in a repetition.
    pub(crate) fn new(scope: &str, target: &str, key: &str, parts: &[&str]) -> Self {
        // Ids hold no control characters, so NUL parts them.
        let joined = [scope, target, key].join("\0");
        Self {
            key: Uuid::new_v5(&Uuid::NAMESPACE_OID, joined.as_bytes()),
            fingerprint: Uuid::new_v5(&Uuid::NAMESPACE_OID, parts.join("\0").as_bytes()),
        }
    }

    /// What is kept beside a durable message.
    pub(crate) fn note(&self, id: Uuid, recipients: u64, expires_at: u64) -> Note {
        let value = [self.fingerprint.as_bytes().as_slice(), id.as_bytes(), &recipients.to_le_bytes()].concat();
        Note { key: Bytes::copy_from_slice(self.key.as_bytes()), value: value.into(), expires_at }
    }
}

/// Whether a send goes on.
pub(crate) enum Begun {
    /// It is the first: send it, and [`finish`](Idempotency::finish).
    First(Answer),
    /// It is a repetition, and its answer is given or will be.
    Repeated,
}

impl Idempotency {
    pub(crate) fn begin(&self, send: KeyedSend, answer: Answer, now: u64, window: u64, max: usize) -> Begun {
        let mut known = self.0.lock();
        let forgotten = known.forget(now, window, max);
        if !forgotten.is_empty() {
            drop(known);
            forget_all(forgotten);
            known = self.0.lock();
        }
        let Some(first) = known.get_mut(&send.key) else {
            if max > 0 {
                known.put(send.key, Send { fingerprint: send.fingerprint, state: State::Asked(Vec::new()) }, now);
            }
            return Begun::First(answer);
        };
        let result = if first.fingerprint != send.fingerprint {
            Err(ErrorReply::from(ErrorCode::IdempotencyConflict))
        } else {
            match &mut first.state {
                State::Asked(waiting) => {
                    waiting.push(answer);
                    return Begun::Repeated;
                }
                State::Answered(answered) => Ok(answered.as_duplicate()),
            }
        };
        drop(known);
        answer(result);
        Begun::Repeated
    }

    /// The first send of a key has its answer: those who repeated it meanwhile get it too. One that was refused
    /// before it was accepted may be tried again under its key.
    pub(crate) fn finish(&self, send: KeyedSend, result: &Result<Answered, ErrorReply>) {
        let mut known = self.0.lock();
        let waiting = match (known.get_mut(&send.key), result) {
            (Some(Send { state: state @ State::Asked(_), .. }), Ok(answered)) => {
                match mem::replace(state, State::Answered(*answered)) {
                    State::Asked(waiting) => waiting,
                    State::Answered(_) => Vec::new(),
                }
            }
            (Some(Send { state: State::Asked(_), .. }), Err(_)) => match known.remove(&send.key) {
                Some(Send { state: State::Asked(waiting), .. }) => waiting,
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        drop(known);
        for answer in waiting {
            answer(result.as_ref().map(Answered::as_duplicate).map_err(Clone::clone));
        }
    }

    /// What was found beside the messages of an earlier run. What they were answered then is not: they were stored.
    pub(crate) fn restore(&self, mut notes: Vec<Note>, window: u64) {
        notes.sort_by_key(|note| note.expires_at);
        let mut known = self.0.lock();
        for note in &notes {
            let key = <[u8; 16]>::try_from(&note.key[..]);
            let value = note.value.split_first_chunk::<16>();
            if let (Ok(key), Some((fingerprint, rest))) = (key, value)
                && let Some((id, recipients)) = rest.split_first_chunk::<16>()
                && let Ok(recipients) = <[u8; 8]>::try_from(recipients)
            {
                let receipt = SendReceipt::new(Uuid::from_bytes(*id), wsc_protocol::Fate::STORED);
                let state = State::Answered(Answered { receipt, recipients: u64::from_le_bytes(recipients) });
                let since = note.expires_at.saturating_sub(window);
                known.put(Uuid::from_bytes(key), Send { fingerprint: Uuid::from_bytes(*fingerprint), state }, since);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// Whoever waits for the answer to a send whose key is forgotten has to ask again.
fn forget_all(sends: Vec<Send>) {
    for send in sends {
        if let State::Asked(waiting) = send.state {
            for answer in waiting {
                answer(Err(ErrorReply::new(ErrorCode::Full, "too many idempotency keys are in use")));
            }
        }
    }
}

impl std::fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idempotency").field("keys", &self.len()).finish()
    }
}
