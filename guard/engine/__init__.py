"""The only code that knows vLLM: the guarded engine client, the worker that edits, and the launcher's proofs.

A request's edits are fixed in the frontend (`client`), travel as data (`edits`), are mapped to rows of each
step's batch in the worker (`steps`), applied at sites inside the model (`sites`) and reported back
(`records`).
"""
