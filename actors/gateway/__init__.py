"""The gateway: Myna over HTTP. OpenAI's API, Parrot's, and Myna's own, all spoken by one process without state.

Law: it holds nothing that another gateway, or this one after a restart, could not know as well: any number of them serve the same
sessions. It is an application of the SDK, and no part of the way that a value takes from one engine to the next.

    http        requests and answers: one table of endpoints, from which routes and the OpenAPI document are made
    problems    what is told when something goes wrong
    keys        API keys, and whose they are
    limits      requests a minute
    tenancy     one tenant's sessions as this process holds them
    app         the endpoints put together
    server      the process: its connection, its socket, its end
    openai/     OpenAI's API, and semantic variables in it
    parrot      Parrot's API
    native/     Myna's own API
"""
