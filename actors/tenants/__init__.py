"""Who may do what on the NATS servers: tenants, the roles of Myna's own processes, and the authority that lets them in.

Law: each tenant is an account of its own, and reaches the streams' account by imports that name its own subjects alone.

Permissions on users of one shared account are not enough. Whoever asks names the subject of the answer, no permission is
checked on it, and the server writes the answer there: a direct get of a value of one's own, answered to
`$JS.API.STREAM.DELETE.<stream>`, deletes that stream (measured, nats-server 2.15). A request that crosses an import is
answered to the account that it came from, and nowhere else.

    keys          nkeys and signed claims: what an operator, an account and a user are known by
    rights        the subjects that each role and each tenant may use
    accounts      these rights as claims of NATS accounts and users
    credentials   the file with which a user connects, and what it says of itself
    keyring       the authority of a home folder, and the credentials files there
    authority     the folder with the signing keys and the table of tenants; issues all of the above
    trust         what a server is configured with
    cluster       how several servers are configured together
    admin         changes on running servers: accounts pushed to them, policies to the schedulers
"""
