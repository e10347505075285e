//! Who is connected.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use dashmap::{DashMap, Entry};
use parking_lot::Mutex;
use uuid::Uuid;
use wsc_config::UserPolicy;
use wsc_protocol::Id;

use crate::session::Session;

/// A user with at least one connection.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: Id,
    sessions: Mutex<Vec<Arc<Session>>>,
}

impl User {
    /// The user's connections at this moment.
    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().clone()
    }

    /// The user's only connection, or all of them; what a send needs without a list for the most common case.
    pub(crate) fn recipients(&self) -> Recipients {
        match &self.sessions.lock()[..] {
            [only] => Recipients::One(Arc::clone(only)),
            all => Recipients::Many(all.to_vec()),
        }
    }

    /// How many connections there are beside the one of this client id.
    pub(crate) fn count_others(&self, client_id: Option<&str>) -> usize {
        let sessions = self.sessions.lock();
        sessions.iter().filter(|s| client_id.is_none_or(|id| !s.is_client(id))).count()
    }

    pub(crate) fn find_client(&self, client_id: &str) -> Option<Arc<Session>> {
        self.sessions.lock().iter().find(|s| s.is_client(client_id)).cloned()
    }
}

/// The connections that a message to a user goes to.
pub(crate) enum Recipients {
    One(Arc<Session>),
    Many(Vec<Arc<Session>>),
}

impl Recipients {
    pub(crate) fn as_slice(&self) -> &[Arc<Session>] {
        match self {
            Self::One(session) => std::slice::from_ref(session),
            Self::Many(sessions) => sessions,
        }
    }
}

/// A user in the table of users: found by its id, which it holds itself.
struct ById(Arc<User>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        self.0.id.as_str()
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.as_str().hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}

/// All users of the node: a table of pointers, eight bytes an entry. Connections are found through their users;
/// only operators look for one by its session id, and they can wait for a walk.
#[derive(Default)]
pub(crate) struct Users {
    by_id: DashMap<ById, ()>,
    connections: AtomicUsize,
    connections_total: AtomicU64,
}

/// What a new connection changed.
pub(crate) struct Attached {
    pub(crate) session: Arc<Session>,
    /// The connection whose place it took.
    pub(crate) replaced: Option<Arc<Session>>,
    /// Connections that the user may not have beside the new one; the new one itself where the newest goes.
    pub(crate) evicted: Vec<Arc<Session>>,
}

/// How many connections a user may have.
#[derive(Clone, Copy)]
pub(crate) struct UserLimit {
    /// 0: any number.
    pub(crate) max: u64,
    pub(crate) policy: UserPolicy,
}

impl Users {
    /// Adds the connection that `make` builds for its user. Where it is the user's only one, `came` is called before
    /// anybody can add another or remove it; it must not look into this table.
    pub(crate) fn attach(
        &self,
        user_id: &Id,
        limit: UserLimit,
        make: impl FnOnce(Arc<User>) -> Session,
        came: impl FnOnce(),
    ) -> Attached {
        self.connections_total.fetch_add(1, Relaxed);
        self.add(user_id, limit, |user| Arc::new(make(user)), came)
    }

    /// Adds a connection that has been [removed](Self::detach) from another user. As [`attach`](Self::attach), but it
    /// is no new connection.
    pub(crate) fn move_to(
        &self,
        user_id: &Id,
        session: &Arc<Session>,
        limit: UserLimit,
        came: impl FnOnce(),
    ) -> Attached {
        let own = |user| {
            session.become_user(user);
            Arc::clone(session)
        };
        self.add(user_id, limit, own, came)
    }

    fn add(
        &self,
        user_id: &Id,
        limit: UserLimit,
        make: impl FnOnce(Arc<User>) -> Arc<Session>,
        came: impl FnOnce(),
    ) -> Attached {
        let newcomer = User { id: user_id.clone(), sessions: Mutex::default() };
        // The map's shard stays locked until the connection is in, so that the user cannot be removed meanwhile.
        let entry = match self.by_id.entry(ById(Arc::new(newcomer))) {
            Entry::Occupied(entry) => entry.into_ref(),
            Entry::Vacant(entry) => entry.insert(()),
        };
        let user = Arc::clone(&entry.key().0);
        let session = make(Arc::clone(&user));
        let mut sessions = user.sessions.lock();
        let given = session.names.client_id();
        let old = given.and_then(|given| sessions.iter().position(|s| s.is_client(given)));
        let replaced = old.map(|at| sessions.swap_remove(at));
        let is_first = sessions.is_empty() && replaced.is_none();
        sessions.reserve_exact(1);
        sessions.push(Arc::clone(&session));
        let mut evicted = Vec::new();
        while limit.max > 0 && sessions.len() as u64 > limit.max {
            // The one that comes is the newest, whenever it connected. Ids begin with the time.
            let is_newest = |s: &Arc<Session>| Arc::ptr_eq(s, &session);
            let victim = match limit.policy {
                UserPolicy::Refuse => sessions.iter().position(is_newest),
                _ => (0..sessions.len()).filter(|&at| !is_newest(&sessions[at])).min_by_key(|&at| sessions[at].id),
            };
            let Some(victim) = victim else { break };
            evicted.push(sessions.swap_remove(victim));
        }
        drop(sessions);
        if is_first {
            came();
        }
        drop(entry);
        self.connections.fetch_add(1, Relaxed);
        self.connections.fetch_sub(usize::from(replaced.is_some()) + evicted.len(), Relaxed);
        Attached { session, replaced, evicted }
    }

    /// Removes a connection, if it is there (any more). Where it was its user's last, `went` is called before anybody
    /// can add another; it must not look into this table.
    pub(crate) fn detach(&self, session: &Arc<Session>, went: impl FnOnce()) {
        let mut was_there = false;
        self.by_id.remove_if(session.user().id.as_str(), |ById(user), ()| {
            let mut sessions = user.sessions.lock();
            if let Some(at) = sessions.iter().position(|s| Arc::ptr_eq(s, session)) {
                sessions.swap_remove(at);
                was_there = true;
                self.connections.fetch_sub(1, Relaxed);
            }
            let is_empty = sessions.is_empty();
            drop(sessions);
            if was_there && is_empty {
                went();
            }
            is_empty
        });
    }

    pub(crate) fn get(&self, user_id: &str) -> Option<Arc<User>> {
        self.by_id.get(user_id).map(|entry| Arc::clone(&entry.key().0))
    }

    pub(crate) fn session(&self, id: Uuid) -> Option<Arc<Session>> {
        self.by_id.iter().find_map(|user| user.key().0.sessions.lock().iter().find(|s| s.id == id).cloned())
    }

    /// Calls `visit` with every connection, in no order. It must not look into this table.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Arc<Session>)) {
        for user in &self.by_id {
            user.key().0.sessions.lock().iter().for_each(&mut visit);
        }
    }

    /// Every connection at this moment, in no order.
    pub(crate) fn all_sessions(&self) -> Vec<Arc<Session>> {
        self.by_id.iter().flat_map(|user| user.key().0.sessions()).collect()
    }

    /// How many users have a connection.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// How many connections there have been.
    pub(crate) fn connections_total(&self) -> u64 {
        self.connections_total.load(Relaxed)
    }
}
