//! The fates of messages, for those who ask afterwards (protocol §4).

use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;
use wsc_protocol::{FailureReason, Fate, Id, Outcome};

use super::recent::Recent;

/// What became of messages lately: at most `outcomes.max` of them, for `outcomes.retention`.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(Mutex<Recent<Uuid, Known>>);

/// One message.
#[derive(Debug)]
struct Known {
    sender_id: Box<str>,
    fates: Fates,
}

/// Most messages have one recipient, and there are many messages.
#[derive(Debug)]
enum Fates {
    One(PairFate),
    Many(Vec<PairFate>),
}

impl Fates {
    fn as_slice(&self) -> &[PairFate] {
        match self {
            Self::One(pair) => std::slice::from_ref(pair),
            Self::Many(pairs) => pairs,
        }
    }

    fn find(&mut self, user_id: &Id) -> Option<&mut PairFate> {
        match self {
            Self::One(pair) => Some(pair).filter(|pair| pair.user_id == *user_id),
            Self::Many(pairs) => pairs.iter_mut().find(|pair| pair.user_id == *user_id),
        }
    }

    fn push(&mut self, pair: PairFate) {
        match self {
            Self::Many(pairs) => pairs.push(pair),
            Self::One(first) => *self = Self::Many(vec![first.clone(), pair]),
        }
    }
}

/// What became of a message for one recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PairFate {
    /// The recipient.
    #[serde(serialize_with = "as_text")]
    pub user_id: Id,
    /// Where the message stands.
    pub outcome: Outcome,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<FailureReason>,
    /// How often it was transmitted.
    pub attempts: u32,
}

fn as_text<S: serde::Serializer>(id: &Id, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(id.as_str())
}

/// The fates of one message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MessageFate {
    /// The message's id.
    pub id: Uuid,
    /// Who sent it.
    #[serde(skip)]
    pub sender_id: String,
    /// What became of it for each recipient.
    pub recipients: Vec<PairFate>,
}

/// How long and how much is remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Milliseconds.
    pub(crate) retention: u64,
    pub(crate) max: usize,
}

impl Outcomes {
    /// Takes note of where a message stands for one recipient. What is final stays as it is.
    pub(crate) fn note(&self, id: Uuid, sender_id: &str, pair: PairFate, now: u64, memory: Memory) {
        if memory.max == 0 {
            return;
        }
        let mut known = self.0.lock();
        match known.remove(&id) {
            None => known.put(id, Known { sender_id: sender_id.into(), fates: Fates::One(pair) }, now),
            Some(mut message) => {
                match message.fates.find(&pair.user_id) {
                    None => message.fates.push(pair),
                    Some(current) if current.outcome.is_final() => {}
                    Some(current) => *current = PairFate { attempts: pair.attempts.max(current.attempts), ..pair },
                }
                known.put(id, message, now);
            }
        }
        known.forget(now, memory.retention, memory.max);
    }

    /// Takes note of a move of a message that is known; others were never asked for.
    pub(crate) fn moved(&self, id: Uuid, user_id: &Id, fate: Fate, now: u64, memory: Memory) {
        let mut known = self.0.lock();
        let Some(mut message) = known.remove(&id) else { return };
        if let Some(pair) = message.fates.find(user_id).filter(|pair| !pair.outcome.is_final()) {
            pair.outcome = fate.outcome;
            pair.attempts = pair.attempts.max(u32::from(fate == Fate::PENDING));
        }
        known.put(id, message, now);
        known.forget(now, memory.retention, memory.max);
    }

    /// Takes note of one more attempt.
    pub(crate) fn attempt(&self, id: Uuid, user_id: &Id, attempt: u32) {
        if let Some(pair) = self.0.lock().get_mut(&id).and_then(|message| message.fates.find(user_id)) {
            pair.attempts = pair.attempts.max(attempt);
        }
    }

    pub(crate) fn get(&self, id: Uuid, now: u64, memory: Memory) -> Option<MessageFate> {
        let mut known = self.0.lock();
        known.forget(now, memory.retention, memory.max);
        let message = known.get(&id)?;
        Some(MessageFate {
            id,
            sender_id: message.sender_id.to_string(),
            recipients: message.fates.as_slice().to_vec(),
        })
    }

    /// How many messages are remembered.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Why an acknowledgement by this user means nothing.
    pub(crate) fn ignored_ack(&self, id: Uuid, user_id: &Id) -> &'static str {
        match self.0.lock().get_mut(&id) {
            None => "unknown",
            Some(message) => match message.fates.find(user_id) {
                None => "foreign",
                Some(pair) if pair.outcome.is_final() => "late",
                Some(_) => "unknown",
            },
        }
    }
}
