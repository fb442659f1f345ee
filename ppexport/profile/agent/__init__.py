"""What measures, here and on a device: standard library and NumPy alone, Python 3.8 or newer.

It imports no other part of ppexport. It measures and writes down; it judges nothing. What the numbers mean is said
where they are read, in `ppexport.profile`.
"""
