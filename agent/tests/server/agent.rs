//! A running agent with fake steps, and those who call it.

use super::*;

/// A running agent of host db1 with fake steps.
pub(crate) struct Agent {
    pub(crate) directory: TempDir,
    pub(crate) authority: Authority,
    pub(crate) address: SocketAddr,
    pub(crate) world: Arc<World>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) served: JoinHandle<Result<(), StartError>>,
}

/// A directory that is private, as the agent demands.
pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir().unwrap()
}

impl Agent {
    pub(crate) async fn start(behaviour: Behaviour) -> Agent {
        let authority = Authority::new();
        Agent::start_on(directory(), authority, World::new(behaviour)).await
    }

    pub(crate) async fn start_on(directory: TempDir, authority: Authority, world: Arc<World>) -> Agent {
        authority.issue(&directory.path().join("tls"), Role::Agent, "db1");
        let ready = prepare(fake::config(directory.path(), "db1")).unwrap();
        let server = Server::bind(ready, Fake::table(&world)).unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Agent { directory, authority, address, world, stop: Some(stop), served }
    }

    /// Ends it as SIGTERM does; what a restart needs.
    pub(crate) async fn stop(mut self) -> (TempDir, Authority, Arc<World>) {
        drop(self.stop.take());
        self.served.await.unwrap().unwrap();
        (self.directory, self.authority, self.world)
    }

    pub(crate) fn holder(&self, role: Role, name: &str) -> TlsIdentity {
        self.authority.issue(&self.directory.path().join(format!("holder-{role}")), role, name)
    }

    pub(crate) async fn channel(&self, identity: &TlsIdentity) -> Result<Channel, tonic::transport::Error> {
        let endpoint = tls::endpoint(&self.address.to_string())?;
        identity.connect(&endpoint, Role::Agent, "db1").await
    }

    pub(crate) async fn client(&self, role: Role) -> AgentClient<Channel> {
        let identity = self.holder(role, "someone");
        AgentClient::new(self.channel(&identity).await.unwrap())
    }

    pub(crate) async fn hello(&self, role: Role) -> Result<HelloReply, Status> {
        self.client(role).await.hello(HelloRequest::default()).await.map(|reply| reply.into_inner())
    }

    pub(crate) async fn connected(&self) -> Channel {
        let identity = self.holder(Role::Coordinator, "c1");
        self.channel(&identity).await.unwrap()
    }

    /// As a coordinator that has just greeted it.
    pub(crate) async fn run(&self, request: StepRequest) -> Result<Streaming<StepEvent>, Status> {
        let greeted = caller::greet(self.connected().await).await;
        AgentClient::new(greeted).run_step(request).await.map(|reply| reply.into_inner())
    }

    /// As any coordinator that says this.
    pub(crate) async fn run_as(
        &self,
        caller: Caller,
        request: StepRequest,
    ) -> Result<Streaming<StepEvent>, Status> {
        let mut client = AgentClient::with_interceptor(self.connected().await, caller);
        client.run_step(request).await.map(|reply| reply.into_inner())
    }

    pub(crate) async fn greeted_by(
        &self,
        group: &str,
        known: Option<AgentIdentity>,
    ) -> Result<HelloReply, Status> {
        let caller = Caller { group: group.into(), meant: None };
        let mut client = AgentClient::with_interceptor(self.connected().await, caller);
        client.hello(HelloRequest { known }).await.map(|reply| reply.into_inner())
    }
}
