"""OpenAI's API over graphs of one call, and semantic variables in it.

schemas       what its requests hold
extension     the field `myna` of a request: session, input variables, output variables
prompts       messages to the program of a call
calls         a call's life: submitted, read, given up when the client leaves
toolcalls     tool calls in a model's text
replies       values to answers
chat, completions, responses, models   the endpoints
"""
