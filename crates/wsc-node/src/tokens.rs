//! Tokens of those who are connected: renewed, run out, revoked (protocol §6).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use wsc_auth::{AuthError, Identity, Permission, Permissions, Revocation, Revocations};
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason, ErrorCode, ErrorReply, Id, encode};
use wsc_store::{RecordChange, RecordStore, StoreError};

use crate::{
    core::Core,
    encode::{now_ms, with_frame},
    grant::Grant,
    session::{Session, SessionRef},
    users::{Attached, UserLimit},
};

/// When the next token of a connection may run out. Nothing is kept for each: who is due is found by a walk, which is
/// made when somebody may be.
#[derive(Debug)]
pub(crate) struct Expiries {
    /// Unix milliseconds; [`NEVER`] where no token runs out.
    next: AtomicU64,
    sooner: Notify,
}

impl Default for Expiries {
    fn default() -> Self {
        Self { next: AtomicU64::new(NEVER), sooner: Notify::new() }
    }
}

impl Expiries {
    /// A connection holds this now.
    pub(crate) fn note(&self, grant: &Grant) {
        if let Some(at) = grant.expires_at_ms()
            && self.next.fetch_min(at, Relaxed) > at
        {
            self.sooner.notify_one();
        }
    }
}

impl Expiries {
    /// When tokens run out is to be worked out anew.
    pub(crate) fn look_again(&self) {
        self.next.store(0, Relaxed);
        self.sooner.notify_one();
    }
}

impl Core {
    /// The identity that a token speaks for, unless it was revoked.
    pub(crate) async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        let Some(authenticator) = &self.authenticator else { return Err(AuthError::Invalid) };
        let identity = authenticator.authenticate(token).await?;
        let issued_at_ms = identity.issued_at_ms;
        if self.revocations.is_revoked(identity.token_id.as_deref(), identity.user_id.as_str(), issued_at_ms) {
            return Err(AuthError::Revoked);
        }
        Ok(identity)
    }

    /// Tells connections that their tokens have run out, and closes those that did not renew them in time.
    pub(crate) async fn run_expiry_of_tokens(self: Arc<Self>) {
        loop {
            let next = self.expiries.next.load(Relaxed);
            // Timers have their limits; a token may be good for a hundred years.
            let wait = Duration::from_millis(next.saturating_sub(now_ms())).min(LONGEST_WAIT);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.expiries.sooner.notified() => continue,
                () = self.stop.cancelled() => return,
            }
            if now_ms() < next {
                continue;
            }
            let started = Instant::now();
            self.expire_tokens();
            // A walk over all of them takes its time: no more than a hundredth of one core goes into them.
            let pause = (started.elapsed() * 100).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn expire_tokens(&self) {
        // Whoever comes from now on lowers it again.
        self.expiries.next.store(NEVER, Relaxed);
        let auth = &self.settings().auth;
        // Who was let in by the leeway has the grace, too.
        let (now, grace) = (now_ms(), (auth.leeway + auth.expiry_grace).as_millis() as u64);
        let mut next = NEVER;
        let mut expired = Vec::new();
        self.users.for_each(|session| {
            let Some(expires_at) = session.grant().expires_at_ms() else { return };
            let ends_at = expires_at.saturating_add(grace);
            if now >= ends_at {
                expired.push(Arc::clone(session));
                return;
            }
            if now >= expires_at {
                if session.is_first_told_of_expiry() {
                    tell_expiry(session, expires_at);
                }
                next = next.min(ends_at);
            } else {
                next = next.min(expires_at);
            }
        });
        self.expiries.next.fetch_min(next, Relaxed);
        for session in expired {
            let close = CloseReason::new(CloseCode::TOKEN_EXPIRED, "token expired");
            self.close(&session, &close, DisconnectReason::TokenExpired);
        }
    }

    /// Revokes a token, or all of a user's so far, for good: new connections are refused, open ones are closed.
    /// Returns how many.
    ///
    /// # Errors
    ///
    /// Where there are too many, or the store does not work: nothing is revoked then.
    ///
    /// # Cancel safety
    ///
    /// It is done by a task of its own: who asked may go away.
    pub(crate) async fn revoke(self: &Arc<Self>, revocation: Revocation) -> Result<usize, ErrorReply> {
        let core = Arc::clone(self);
        let revoked = self.tasks.spawn(async move { core.revoke_now(revocation).await }).await;
        revoked.unwrap_or_else(|_| Err(ErrorCode::ServerError.into()))
    }

    async fn revoke_now(&self, revocation: Revocation) -> Result<usize, ErrorReply> {
        // One at a time, so that what is stored is in force, and the other way round.
        let _alone = self.revoking.lock().await;
        let too_many = || ErrorReply::new(ErrorCode::Full, "too many tokens are revoked");
        if !self.revocations.has_room_for(&revocation) {
            return Err(too_many());
        }
        let record = RecordChange::put(REVOKED, revocation.to_key(), revocation.to_value());
        self.records.commit(vec![record]).await.map_err(|error| {
            tracing::error!(%error, "a revoked token could not be stored");
            ErrorReply::new(ErrorCode::ServerError, "the store does not work: nothing is revoked")
        })?;
        self.revocations.add(revocation.clone()).map_err(|_| too_many())?;
        self.metrics.token_revoked();
        let affected = match &revocation {
            Revocation::User { user_id, .. } => {
                self.users.get(user_id.as_str()).map_or(Vec::new(), |user| user.sessions())
            }
            _ => self.users.all_sessions(),
        };
        Ok(affected.iter().filter(|session| self.close_if_revoked(session)).count())
    }

    /// Closes a connection whose token is revoked. Returns whether it is.
    pub(crate) fn close_if_revoked(&self, session: &Session) -> bool {
        let grant = session.grant();
        let Some(token) = &grant.token else { return false };
        if !self.revocations.is_revoked(token.id.as_deref(), session.user().id.as_str(), token.issued_at_ms) {
            return false;
        }
        let close = CloseReason::new(CloseCode::INVALID_TOKEN, "token revoked");
        self.close(session, &close, DisconnectReason::TokenRevoked);
        true
    }

    /// Takes another token for a connection: one of the same user's, or, where it came without one, anybody's.
    /// `announce` is called once it counts, before anything that it brings along. Called by the connection's own task.
    ///
    /// # Errors
    ///
    /// Where the token is for somebody else, or that user has too many connections: nothing has changed then.
    pub(crate) fn take_token(
        self: &Arc<Self>,
        session: &Arc<Session>,
        identity: &Identity,
        announce: impl FnOnce(&Grant),
    ) -> Result<(), ErrorReply> {
        let _renewing = session.renewing.lock();
        let user = Arc::clone(&session.user());
        let grant = Grant::of(identity);
        if user.id == identity.user_id {
            self.renew(session, &grant);
            announce(&grant);
        } else if session.is_anonymous() {
            self.change_user(session, &identity.user_id, &grant, announce)?;
        } else {
            return Err(ErrorReply::new(ErrorCode::InvalidToken, "this is the token of another user"));
        }
        self.close_if_revoked(session);
        Ok(())
    }

    /// Has somebody without a token hold what the settings of this moment give such people, or go.
    pub(crate) fn renew_anonymous(&self, session: &Arc<Session>) {
        let _renewing = session.renewing.lock();
        if !session.is_anonymous() {
            return;
        }
        let auth = &self.settings().auth;
        if !auth.allow_anonymous {
            let close = CloseReason::new(CloseCode::PERMISSION_WITHDRAWN, "a token is needed now");
            self.close(session, &close, DisconnectReason::Permission);
            return;
        }
        let permissions = Permissions::parse(&auth.anonymous_permissions).unwrap_or_else(|_| Permissions::none());
        if session.grant().permissions != permissions {
            self.renew(session, &Grant::anonymous(permissions));
        }
    }

    /// From now on a connection may do this, until then. `Session::renewing` is held.
    fn renew(&self, session: &Arc<Session>, grant: &Arc<Grant>) {
        let old = Arc::clone(&session.grant());
        let user_type = grant.user_type;
        session.renew(Arc::clone(grant));
        // Afterwards: a walk in between would find the old one.
        self.expiries.note(grant);
        if user_type != old.user_type {
            self.everyone.of(old.user_type, session.speaks_v1).leave(session.everyone_slot.load(Relaxed));
            let everyone = self.everyone.of(user_type, session.speaks_v1);
            let slot = everyone.join(SessionRef(Arc::clone(session)), None).unwrap_or(u32::MAX);
            session.everyone_slot.store(slot, Relaxed);
        }
        // Whoever was put into a room without the permission to join stays there.
        let rooms = session.joined.lock().room_ids();
        for room_id in rooms {
            let may = |grant: &Grant| grant.permissions.allows_room(Permission::JoinRoom, &room_id);
            if may(&old) && !may(grant) {
                // It may have left meanwhile.
                let _ = self.leave(session, &room_id, None, Some("permission withdrawn"));
            }
        }
    }

    /// Gives a connection of somebody without a name to the user that it turned out to be.
    fn change_user(
        self: &Arc<Self>,
        session: &Arc<Session>,
        user_id: &Id,
        grant: &Arc<Grant>,
        announce: impl FnOnce(&Grant),
    ) -> Result<(), ErrorReply> {
        let limits = &self.settings().limits;
        let limit = UserLimit { max: limits.user_connections, policy: limits.user_policy };
        self.check_user_limit(user_id, session.names.client_id(), limit)?;
        let nobody = Arc::clone(&session.user());
        self.users.detach(session, || self.user_went(&nobody.id, session.id.as_u128() as u64));
        self.mail_disconnected(session);
        let is_expected = self.expect_session(user_id);
        let Attached { replaced, evicted, .. } =
            self.users.move_to(user_id, session, limit, || self.user_came(user_id));
        self.end_others(replaced.as_deref(), &evicted);
        self.renew(session, grant);
        announce(grant);
        self.mail_connected(session, is_expected);
        Ok(())
    }
}

fn tell_expiry(session: &Session, expires_at: u64) {
    with_frame(
        |out| {
            encode::reply(out, "token_expiring", None, now_ms(), |json| {
                json.raw("{\"expires_at\":").number(expires_at).raw("}");
            });
        },
        |frame| session.outbound.send(frame),
    );
}

/// Reads back what was revoked before the start.
pub(crate) async fn load_revocations(records: &dyn RecordStore) -> Result<Revocations, StoreError> {
    let revocations = Revocations::default();
    let mut after: Option<Box<[u8]>> = None;
    loop {
        let page = records.scan(REVOKED, after.as_deref(), PAGE).await?;
        let is_last = page.len() < PAGE;
        for record in &page {
            let revocation = Revocation::from_record(&record.key, &record.value);
            if revocation.is_none_or(|revocation| revocations.add(revocation).is_err()) {
                tracing::error!(
                    "a revoked token that was stored is not in force: it cannot be read, or there are too many"
                );
            }
        }
        after = page.into_iter().last().map(|record| record.key);
        if is_last {
            return Ok(revocations);
        }
    }
}

/// The table of revoked tokens.
const REVOKED: &str = "revoked";

/// How many are read at a time.
const PAGE: usize = 1000;

const NEVER: u64 = u64::MAX;

const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Between two walks. The longest is how late somebody may be told.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
